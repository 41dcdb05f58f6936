"""Gradients through the public functions: checked by finite differences, and what is refused is refused clearly."""

from __future__ import annotations

import pytest
import torch

from flash_attn3_sm121.errors import CallError
from tests.fakes.shapes import dense, fa3, packed, plain


def test_dense_gradients_by_finite_differences() -> None:
    q, k, v = dense(b=1, sq=3, sk=4, h=2, hk=1, d=8, grad=True, dtype=torch.float64)
    torch.autograd.gradcheck(lambda *x: fa3.flash_attn_func(*x, causal=True, window_size=(2, 0)), (q, k, v), atol=1e-4)


def test_a_plain_call_in_fp64_is_differentiable_every_time() -> None:
    """The fast path, which the second call takes, gave an LSE in fp64, and the backward takes none."""
    q, k, v = dense(b=1, sq=4, sk=4, h=2, hk=2, d=8, grad=True, dtype=torch.float64)
    for _ in range(2):
        out, lse = fa3.flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
        assert lse.dtype == torch.float32
        out.sum().backward()


def test_gradient_of_the_lse_counts() -> None:
    """Upstream drops it in silence; here it is compared with plain arithmetic."""
    q, k, v = dense(sq=5, sk=5, hk=4, grad=True)
    out, lse = fa3.flash_attn_func(q, k, v, return_attn_probs=True)
    weight = torch.randn_like(lse)
    found = torch.autograd.grad((lse * weight).sum() + out.square().sum(), (q, k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * 0.25
    expected_out = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)
    loss = (scores.logsumexp(-1) * weight).sum() + expected_out.square().sum()
    for mine, right in zip(found, torch.autograd.grad(loss, (q, k, v)), strict=True):
        torch.testing.assert_close(mine, right, atol=1e-4, rtol=1e-4)


def test_the_lse_alone_can_be_differentiated() -> None:
    q, k, v = dense(sq=5, sk=5, hk=4, grad=True)
    _, lse = fa3.flash_attn_func(q, k, v, return_attn_probs=True)
    dq, dv = torch.autograd.grad(lse.sum(), (q, v))
    assert dq.abs().max() > 0
    assert dv.abs().max() == 0


def test_sinks_get_a_gradient() -> None:
    q, k, v = dense(b=1, sq=3, sk=4, h=2, hk=1, d=8, grad=True, dtype=torch.float64)
    sinks = torch.randn(2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(
        lambda *x: fa3.flash_attn_func(*x[:3], causal=True, s_aux=x[3]), (q, k, v, sinks), atol=1e-4
    )


def test_varlen_equals_each_sequence_alone() -> None:
    q, k, v, cu = packed((3, 0, 7), grad=True)
    out = fa3.flash_attn_varlen_func(q, k, v, cu, cu, 7, 7, causal=True)
    weight = torch.randn_like(out)
    found = torch.autograd.grad((out * weight).sum(), (q, k, v))
    apart = [fa3.flash_attn_func(*(x[a:b][None] for x in (q, k, v)), causal=True)[0] for a, b in ((0, 3), (3, 10))]
    expected = torch.autograd.grad((torch.cat(apart) * weight).sum(), (q, k, v))
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("layout", ["three", "heads"])
def test_qkvpacked_in_both_layouts(layout: str) -> None:
    h, hk = (4, 4) if layout == "three" else (4, 2)
    q, k, v = dense(sq=6, sk=6, h=h, hk=hk, grad=True)
    joined = torch.stack((q, k, v), dim=2) if layout == "three" else torch.cat((q, k, v), dim=2)
    packed_qkv = joined.detach().requires_grad_()
    heads = None if layout == "three" else h
    out, lse = fa3.flash_attn_qkvpacked_func(packed_qkv, causal=True, num_heads_q=heads, return_attn_probs=True)
    expected = plain(q, k, v, causal=True)
    torch.testing.assert_close(out, expected.float())
    assert lse.shape == (2, 4, 6)
    (found,) = torch.autograd.grad(out.square().sum(), packed_qkv)
    parts = torch.autograd.grad(expected.square().sum(), (q, k, v))
    right = torch.stack(parts, dim=2) if layout == "three" else torch.cat(parts, dim=2)
    torch.testing.assert_close(found, right.float(), atol=1e-4, rtol=1e-4)


def test_chunked_attention_has_a_gradient_here() -> None:
    q, k, v = dense(b=1, sq=6, sk=6, h=2, hk=2, d=8, grad=True, dtype=torch.float64)
    torch.autograd.gradcheck(lambda *x: fa3.flash_attn_func(*x, causal=True, attention_chunk=4), (q, k, v), atol=1e-4)


def test_fully_masked_rows_have_zero_gradient() -> None:
    q, k, v = dense(b=1, sq=5, sk=2, grad=True)
    out, lse = fa3.flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    assert out[:, :3].abs().max() == 0
    assert torch.isneginf(lse[:, :, :3]).all()
    (dq,) = torch.autograd.grad(out.sum(), q)
    assert dq[:, :3].abs().max() == 0
    assert torch.isfinite(dq).all()


def test_double_backward_is_refused_clearly() -> None:
    q, k, v = dense(grad=True)
    (dq,) = torch.autograd.grad(fa3.flash_attn_func(q, k, v).sum(), q, create_graph=True)
    with pytest.raises(CallError, match="double backward is not supported"):
        torch.autograd.grad(dq.sum(), q)


def test_second_query_is_forward_only() -> None:
    q, k, v = dense(grad=True)
    out = fa3.flash_attn_func(q, k, v, qv=torch.randn_like(q))
    with pytest.raises(CallError, match="qv: forward only"):
        out.sum().backward()


def test_cache_attention_is_not_differentiable() -> None:
    q, k, v = dense(grad=True)
    out = fa3.flash_attn_with_kvcache(q, k, v, cache_seqlens=4)
    assert not out.requires_grad


def test_gradients_of_strided_inputs_match_contiguous_ones() -> None:
    base = torch.randn(2, 6, 3 * 4 * 16, requires_grad=True)
    strided = base.view(2, 6, 3, 4, 16).unbind(2)
    (found,) = torch.autograd.grad(fa3.flash_attn_func(*strided, causal=True).square().sum(), base)
    copies = [x.detach().clone().requires_grad_() for x in strided]
    parts = torch.autograd.grad(fa3.flash_attn_func(*copies, causal=True).square().sum(), copies)
    torch.testing.assert_close(found, torch.stack(parts, dim=2).reshape(2, 6, -1))


def test_private_functions_in_both_conventions() -> None:
    from flash_attn_interface import _flash_attn_backward, _flash_attn_forward

    q, k, v = dense()
    new = _flash_attn_forward(q, k, v, *[None] * 20, 0.25, True, 3, 0, 0, 0.0, True, None, 1, None, 0)
    old = _flash_attn_forward(q, k, v, *[None] * 20, 0.25, True, (3, 0), 0, 0.0, True, None, 1, None, 0)
    named = _flash_attn_forward(q, k, v, softmax_scale=0.25, causal=True, window_size=(3, 0))
    assert len(new) == len(old) == 4
    for other in (old, named):
        for a, b in zip(new, other, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)
    out, lse, dout = new[0], new[1], torch.randn_like(q)
    results = []
    for window in ((3, 0), ((3, 0),)):
        grads = [torch.full_like(x, float("nan")) for x in (q, k, v)]
        softmax_d = _flash_attn_backward(
            dout, q, k, v, out, lse, *[None] * 6, *grads, 0.25, True, *window, 0.0, False, 0
        )
        torch.testing.assert_close(softmax_d, (dout * out).sum(-1).transpose(1, 2))
        results.append(grads)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    mine = fa3.flash_attn_func(*leaves, softmax_scale=0.25, causal=True, window_size=(3, 0))
    expected = torch.autograd.grad(mine, leaves, dout)
    for grads in results:
        for a, b in zip(grads, expected, strict=True):
            torch.testing.assert_close(a, b)
