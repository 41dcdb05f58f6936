"""Every size of zero: an empty result, zeros, or a sentence; never the end of the process (it was SIGFPE once)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import flash_attn3_sm121 as fa3
from flash_attn3_sm121 import fallback
from flash_attn3_sm121.call.arguments import ForwardArgs
from flash_attn3_sm121.errors import CallError
from flash_attn3_sm121.fallback import static
from tests.fakes.libraries import Kernels, engine, install

# batch, rows, keys, heads, heads of the keys
SIZES = {
    "batch": (0, 3, 4, 2, 2),
    "rows": (2, 0, 4, 2, 2),
    "keys": (2, 3, 0, 2, 2),
    "heads": (2, 3, 4, 0, 2),
    "one row without heads": (2, 1, 4, 0, 2),
}
WINDOWS = pytest.mark.parametrize("window", [(-1, -1), (2, 0)], ids=["full", "window"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def tensors(name: str, dtype: torch.dtype = torch.float32, *, grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    b, sq, sk, h, hk = SIZES[name]
    shapes = ((b, sq, h, 16), (b, sk, hk, 16), (b, sk, hk, 16))
    q, k, v = (torch.randn(shape).to(dtype).requires_grad_(grad) for shape in shapes)
    return q, k, v


def judge(name: str, q: Tensor, out: Tensor, lse: Tensor) -> None:
    b, sq, sk, h, _ = SIZES[name]
    assert (out.shape, lse.numel()) == (q.shape, b * h * sq)
    assert not out.any() and (sk or torch.isposinf(lse).all())


@pytest.mark.parametrize("name", SIZES)
@WINDOWS
@DTYPES
def test_dense_with_gradients(name: str, window: tuple[int, int], dtype: torch.dtype) -> None:
    for _ in range(2):  # the second may take the fast path
        q, k, v = tensors(name, dtype, grad=True)
        out, lse = fa3.flash_attn_func(q, k, v, window_size=window, return_attn_probs=True)
        judge(name, q, out, lse)
        for gradient, tensor in zip(torch.autograd.grad(out.sum(), (q, k, v)), (q, k, v), strict=True):
            assert gradient.shape == tensor.shape and not gradient.any()


@pytest.mark.parametrize("name", SIZES)
@WINDOWS
def test_packed_with_gradients(name: str, window: tuple[int, int]) -> None:
    b, sq, sk, h, hk = SIZES[name]
    starts = torch.arange(b + 1, dtype=torch.int32)
    q, k, v = (
        torch.randn(shape, requires_grad=True) for shape in ((b * sq, h, 16), (b * sk, hk, 16), (b * sk, hk, 16))
    )
    out, lse = fa3.flash_attn_varlen_func(
        q, k, v, starts * sq, starts * sk, sq, sk, window_size=window, return_attn_probs=True
    )
    judge(name, q, out, lse)
    assert all(not gradient.any() for gradient in torch.autograd.grad(out.sum(), (q, k, v)))


@pytest.mark.parametrize("name", [name for name in SIZES if name != "keys"])
@pytest.mark.parametrize("forward", [fallback.forward, static.forward], ids=["host", "static"])
def test_appending_still_writes(name: str, forward: Any) -> None:
    b, _, _, _, hk = SIZES[name]
    q, k, v = tensors(name)
    new = torch.ones(b, 1, hk, 16)
    lengths = torch.zeros(b, dtype=torch.int32)
    forward(
        ForwardArgs(
            q=q, k=k, v=v, k_new=new, v_new=new, seqused_k=lengths, softmax_scale=1.0, causal=True, window_right=0
        )
    )
    assert torch.equal(k[:, :1], new) and torch.equal(v[:, :1], new)
    assert not b or not torch.equal(k[:, 1:2], new)


@pytest.mark.parametrize("name", SIZES)
def test_no_kernel_is_launched_for_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels()
    install(monkeypatch, engine(kernels.open))
    full = [torch.randn(2, 3, 2, 16).bfloat16() for _ in range(3)]
    fa3.flash_attn_func(*full)  # the class is decided: the next call may take the fast path
    served = len(kernels.calls)
    q, k, v = tensors(name, torch.bfloat16, grad=True)
    out, lse = fa3.flash_attn_func(q, k, v, return_attn_probs=True)
    judge(name, q, out, lse)
    assert all(not gradient.any() for gradient in torch.autograd.grad(out.sum(), (q, k, v)))
    assert kernels.backward_calls == 0
    assert len(kernels.calls) == served + (name == "keys"), "upstream's host code answers a call without keys itself"


def cached(**fields: Any) -> Any:
    cache = torch.randn(2, 4, 2, 16)
    defaults = {
        "q": torch.randn(2, 1, 4, 16),
        "k_cache": cache,
        "v_cache": cache,
        "cache_seqlens": torch.zeros(2).int(),
    }
    return fa3.flash_attn_with_kvcache(**{**defaults, **fields})


REFUSED: dict[str, tuple[Any, str]] = {
    "no head dim": (lambda: fa3.flash_attn_func(*(torch.randn(2, 3, 2, 0),) * 3), "last dimension of the tensor is"),
    "no head dim, by an op": (
        lambda: torch.ops.flash_attn_3._flash_attn_forward(*(torch.randn(2, 3, 2, 0),) * 3),
        "last dimension of the tensor is",
    ),
    "no head dim, backward": (
        lambda: torch.ops.flash_attn_3.bwd(*(torch.randn(2, 3, 2, 0),) * 5, torch.randn(2, 2, 3)),
        "head_size should be",
    ),
    "no head dim, explained": (lambda: fa3.explain(*(torch.randn(2, 3, 2, 0),) * 3), "last dimension of the tensor is"),
    "no heads of keys": (
        lambda: fa3.flash_attn_func(torch.randn(2, 3, 2, 16), *(torch.randn(2, 3, 0, 16),) * 2),
        "Number of heads in key/value must divide",
    ),
    "pages of nothing": (
        lambda: cached(
            k_cache=torch.randn(4, 0, 2, 16), v_cache=torch.randn(4, 0, 2, 16), page_table=torch.zeros(2, 2).int()
        ),
        "a page must hold one position at least",
    ),
    "no pages": (
        lambda: cached(
            k_cache=torch.randn(0, 4, 2, 16), v_cache=torch.randn(0, 4, 2, 16), page_table=torch.zeros(2, 2).int(),
            cache_seqlens=torch.ones(2).int(),
        ),
        r"page_table\[0, 0\] is 0",
    ),
    "no rotary positions": (
        lambda: cached(
            k=torch.randn(2, 1, 2, 16), v=torch.randn(2, 1, 2, 16), rotary_cos=torch.zeros(0, 8),
            rotary_sin=torch.zeros(0, 8),
        ),
        "hold 0 positions",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_sentence(name: str) -> None:
    call, words = REFUSED[name]
    with pytest.raises(CallError, match=words):
        call()


def test_what_may_be_empty_beside_the_tensors() -> None:
    assert not cached(page_table=torch.zeros(2, 0).int()).any()
    assert not cached(k=torch.randn(2, 0, 2, 16), v=torch.randn(2, 0, 2, 16)).any()
    out, lse = fa3.flash_attn_combine(torch.zeros(0, 2, 3, 4, 16), torch.zeros(0, 2, 3, 4))
    assert not out.any() and torch.isneginf(lse).all()
    out, lse = fa3.flash_attn_combine(torch.zeros(2, 2, 3, 0, 16), torch.zeros(2, 2, 3, 0))
    assert (out.shape, lse.shape) == ((2, 3, 0, 16), (2, 3, 0))
