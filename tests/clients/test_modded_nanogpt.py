"""modded-nanogpt's way of calling: packed documents in one compiled graph with backward, and TRL's positional one."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flash_attn3_sm121
from tests.fakes.shapes import fa3, packed, plain
from tests.inductor import needs_inductor

HEADS, DIM = 3, 16
# As get_kernel("kernels-community/flash-attn3", version=1) hands it out: the function at the top level.
varlen = flash_attn3_sm121.flash_attn_varlen_func


class Attention(nn.Module):
    """One packed row of tokens; q, k and v are strided chunks of one projection."""

    def __init__(self, flash: object) -> None:
        super().__init__()
        self.flash = flash
        self.qkv = nn.Linear(HEADS * DIM, 3 * HEADS * DIM, bias=False)
        self.out = nn.Linear(HEADS * DIM, HEADS * DIM, bias=False)

    def forward(self, x: Tensor, cu: Tensor, longest: int, window: int) -> Tensor:
        b, t = x.shape[:2]
        q, k, v = self.qkv(x).view(b, t, 3 * HEADS, DIM).chunk(3, dim=-2)
        y = self.flash(  # type: ignore[operator]
            F.rms_norm(q, (DIM,))[0], F.rms_norm(k, (DIM,))[0], v[0], cu_seqlens_q=cu, cu_seqlens_k=cu,
            max_seqlen_q=longest, max_seqlen_k=longest, causal=True, softmax_scale=0.12, window_size=(window, 0),
        )  # fmt: skip
        return self.out(y.view(b, t, HEADS * DIM))


def per_document(
    q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens_q: Tensor, window_size: tuple[int, int], **_: object
) -> Tensor:
    bounds = cu_seqlens_q.tolist()
    scale = 0.12 * q.shape[-1] ** 0.5
    pieces = [
        plain(q[None, a:b] * scale, k[None, a:b], v[None, a:b], causal=True, window=window_size)[0]
        for a, b in pairwise(bounds)
        if b > a
    ]
    return torch.cat(pieces).to(q.dtype)


def documents(*lengths: int, slots: int = 12) -> Tensor:
    """cu_seqlens of a fixed length, padded with repeated totals: many sequences of no tokens."""
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    return F.pad(bounds, (0, slots - len(bounds)), value=int(bounds[-1])).to(torch.int32)


def step(model: Attention, call: object, x: Tensor, cu: Tensor, window: int) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    model.zero_grad()
    y = call(leaf, cu, 64, window)  # type: ignore[operator]
    y.square().sum().backward()
    assert leaf.grad is not None and model.qkv.weight.grad is not None
    return [y.detach(), leaf.grad, model.qkv.weight.grad.clone()]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, needs_inductor])])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
def test_training_step_in_one_static_graph(backend: str) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    mine = Attention(varlen)
    right = Attention(per_document)
    right.load_state_dict(mine.state_dict())
    compiled = torch.compile(mine, dynamic=False, fullgraph=True, backend=backend)
    x = torch.randn(1, 64, HEADS * DIM)
    for cu, window in ((documents(10, 1, 23, 30), 8), (documents(40, 24), 8), (documents(64), 16)):
        found = step(mine, compiled, x, cu, window)
        for a, b in zip(found, step(right, right, x, cu, window), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_changing_windows_may_be_dynamic() -> None:
    torch._dynamo.reset()
    model = Attention(varlen)
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend="aot_eager")
    x, cu = torch.randn(1, 64, HEADS * DIM), documents(10, 54)
    for window in (4, 8, 12, 16):
        for a, b in zip(step(model, compiled, x, cu, window), step(model, model, x, cu, window), strict=True):
            torch.testing.assert_close(a, b)


def test_results_can_be_viewed() -> None:
    q, k, v, cu = packed((5, 6))
    out = varlen(q, k, v, cu_seqlens_q=cu, cu_seqlens_k=cu, max_seqlen_q=6, max_seqlen_k=6, causal=True)
    assert out.is_contiguous()
    assert out.data_ptr() not in {x.data_ptr() for x in (q, k, v)}
    assert out.view(11, -1).shape == (11, 64)


def test_trl_calls_positionally() -> None:
    q, k, v, cu = packed((5, 6))
    positional = varlen(q, k, v, cu, cu, 6, 6, causal=True, window_size=(3, 0))
    named = fa3.flash_attn_varlen_func(
        q, k, v, cu_seqlens_q=cu, cu_seqlens_k=cu, max_seqlen_q=6, max_seqlen_k=6, causal=True, window_size=(3, 0)
    )
    assert torch.equal(positional, named)
