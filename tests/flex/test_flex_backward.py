"""Gradients through FlexAttention, traced without code generation, against fp64 autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flash_attn3_sm121.call.arguments import BackwardArgs
from flash_attn3_sm121.flex import backend
from flash_attn3_sm121.flex.backend import Run, backward
from flash_attn3_sm121.flex.compiled import KernelCache
from tests.flex.reference import Rule, args_of, attend_batch, attend_packed

RULES = {"window": Rule(left=37, right=0), "softcap": Rule(right=0, softcap=4.0)}


def backward_args(tensors: dict[str, torch.Tensor], rule: Rule, **more: Any) -> BackwardArgs:
    return BackwardArgs(
        **tensors,
        softmax_scale=0.2,
        window_left=rule.left,
        window_right=rule.right,
        softcap=rule.softcap,
        **more,
    )


@pytest.mark.parametrize("with_lse", [False, True], ids=["out", "out+lse"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_dense(rule: Rule, with_lse: bool, traced: KernelCache) -> None:
    q, k, v = torch.randn(2, 150, 4, 32), torch.randn(2, 140, 2, 32), torch.randn(2, 140, 2, 32)
    inputs = [x.double().requires_grad_() for x in (q, k, v)]
    out, lse = attend_batch(*inputs, scale=0.2, rule=rule, used_q=[150] * 2, used_k=[140] * 2)
    dout, dlse = torch.randn(out.shape), torch.randn(lse.shape)
    alive = torch.isfinite(lse)
    assert not alive.all()  # ten rows see no key: their gradient is zero
    loss = (out * dout).sum() + (torch.where(alive, lse, 0.0) * dlse).sum() * with_lse
    want = torch.autograd.grad(loss, inputs)
    tensors = {"q": q, "k": k, "v": v, "dout": dout, "out": out.detach().float(), "softmax_lse": lse.detach().float()}
    *got, extra = backward(backward_args(tensors, rule, dlse=dlse if with_lse else None), run=traced)
    assert extra is None
    for g, w in zip(got, want, strict=True):
        assert g is not None and g.is_contiguous()
        torch.testing.assert_close(g.double(), w, atol=1e-4, rtol=1e-4)


def test_packed(traced: KernelCache) -> None:
    cu = [0, 100, 100, 190]
    q, k, v = torch.randn(190, 4, 32), torch.randn(190, 2, 32), torch.randn(190, 2, 32)
    inputs = [x.double().requires_grad_() for x in (q, k, v)]
    rule = Rule(right=0)
    out, lse = attend_packed(*inputs, scale=0.2, rule=rule, cu_q=cu, cu_k=cu)
    dout = torch.randn(out.shape)
    want = torch.autograd.grad((out * dout).sum(), inputs)
    tensors = {"q": q, "k": k, "v": v, "dout": dout, "out": out.detach().float(), "softmax_lse": lse.detach().float()}
    cu_t = torch.tensor(cu, dtype=torch.int32)
    args = backward_args(tensors, rule, cu_seqlens_q=cu_t, cu_seqlens_k=cu_t, max_seqlen_q=100, max_seqlen_k=100)
    for g, w in zip(backward(args, run=traced), want, strict=False):
        assert g is not None
        torch.testing.assert_close(g.double(), w, atol=1e-4, rtol=1e-4)


def test_no_keys_no_gradient() -> None:
    q, k = torch.randn(1, 3, 2, 32), torch.randn(1, 0, 2, 32)
    tensors = {"q": q, "k": k, "v": k, "dout": q, "out": q, "softmax_lse": torch.zeros(1, 2, 3)}
    dq, dk, dv, _ = backward(backward_args(tensors, Rule()))
    assert not dq.any() and dk.shape == k.shape and dv.shape == k.shape


def test_a_mask_of_a_validation_serves_training(traced: KernelCache, unfused: Run) -> None:
    """inference_mode's tensors cannot be saved for a backward."""
    q, k, v = (torch.randn(1, 130, 2, 32) for _ in range(3))
    rule = RULES["window"]
    with torch.inference_mode():
        backend.forward(args_of(q, k, v, rule), run=unfused)
    out, lse = backend.forward(args_of(q, k, v, rule), run=unfused)
    assert backend.MASKS.hits == 1
    tensors = {"q": q, "k": k, "v": v, "dout": torch.randn_like(out), "out": out, "softmax_lse": lse}
    dq, *_ = backward(backward_args(tensors, rule), run=traced)
    assert dq.isfinite().all() and dq.any()
