"""Tensors that kernels cannot read 16 bytes at a time: the library refuses them, and the fallback serves the call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flash_attn3_sm121 import fallback
from flash_attn3_sm121.api.interface import flash_attn_func, flash_attn_with_kvcache
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.call.backend import use_backend
from flash_attn3_sm121.errors import BackendError
from flash_attn3_sm121.native import library
from tests.fakes.libraries import CAUSAL, Kernels, engine, half, install

REFUSALS = (
    "FlashAttention-3: k starts at no multiple of 16 bytes",
    "FlashAttention-3: q has stride 66 in dimension 2, no multiple of 16 bytes",
    "FlashAttention-3: CUDA driver error 1 for a TMA descriptor",
)


class Choosy(Kernels):
    """Refuses tensors that lie where kernels cannot read them, as csrc/fa3_torch.h does."""

    words = REFUSALS[0]

    def refuse(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            steps = [tensor.stride(i) * tensor.element_size() for i in range(tensor.dim() - 1) if tensor.size(i) > 1]
            if any(number % 16 for number in (tensor.data_ptr(), *steps)):
                raise RuntimeError(self.words)

    def fwd(self, *values: Any) -> tuple[Tensor, ...]:
        self.refuse(*values[:3])
        return super().fwd(*values)

    def bwd(self, *values: Any) -> tuple[Tensor, ...]:
        self.refuse(*values[:4])
        return super().bwd(*values)


def shifted(tensor: Tensor) -> Tensor:
    """The same values, one element off."""
    moved = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
    return moved.copy_(tensor)


@pytest.mark.parametrize("words", REFUSALS)
def test_the_fallback_serves_them_and_says_so_once(words: str) -> None:
    q, k, v = half()
    kernels = Choosy()
    kernels.words = words
    serving = engine(kernels.open)
    with pytest.warns(RuntimeWarning, match="The fallback serves such calls"):
        out, lse, *_ = serving.forward(ForwardArgs(q=q, k=shifted(k), v=v, **CAUSAL))
    expected = fallback.forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))
    torch.testing.assert_close((out, lse), expected)
    into = torch.empty_like(out)
    assert serving.forward(ForwardArgs(q=shifted(q), k=k, v=v, out=into, **CAUSAL))[0] is into
    torch.testing.assert_close(into, expected[0])
    assert kernels.calls == []
    serving.forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))
    assert len(kernels.calls) == 1, "native goes on serving what it can read"


def test_gradients_too() -> None:
    q, k, v = half()
    kernels = Choosy()
    serving = engine(kernels.open)
    out, lse, *_ = serving.forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))
    args = {"dout": torch.randn_like(out), "q": q, "k": k, "v": v, "out": out, "softmax_lse": lse, **CAUSAL}
    right = serving.backward(BackwardArgs(**args))
    into = (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v))
    with pytest.warns(RuntimeWarning, match="no multiple of 16 bytes"):
        found = serving.backward(BackwardArgs(**{**args, "q": shifted(q)}), into)
    assert kernels.backward_calls == 1 and found.dq is into[0]
    torch.testing.assert_close((found.dq, found.dk, found.dv), (right.dq, right.dk, right.dv))


def test_forced_native_says_what_to_do() -> None:
    q, k, v = half()
    with use_backend("native"), pytest.raises(BackendError, match=r"starts at no multiple of 16 bytes") as raised:
        engine(Choosy().open).forward(ForwardArgs(q=q, k=shifted(k), v=v, **CAUSAL))
    assert ".clone()" in str(raised.value.hint)


def test_another_error_is_raised_as_it_is() -> None:
    q, k, v = half()
    kernels = Choosy()
    kernels.words = "CUDA error: an illegal memory access was encountered"
    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine(kernels.open).forward(ForwardArgs(q=q, k=shifted(k), v=v, **CAUSAL))
    assert not library.is_unreadable(RuntimeError(kernels.words))


def test_the_fast_path_of_decoding_falls_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Choosy()
    serving = engine(kernels.open)
    install(monkeypatch, serving)
    caches = [torch.zeros(2, 8, 2, 16, dtype=torch.bfloat16) for _ in range(2)]
    lengths, token = torch.tensor([0, 2], dtype=torch.int32), half(sq=1, sk=1)
    for _ in range(2):  # the second takes the fast path
        flash_attn_with_kvcache(token[0], *caches, k=token[1], v=token[2], cache_seqlens=lengths, causal=True)
    assert len(kernels.calls) == 2
    mirror = [cache.clone() for cache in caches]
    with pytest.warns(RuntimeWarning, match="The fallback serves such calls"):
        found = flash_attn_with_kvcache(
            shifted(token[0]), *caches, k=token[1], v=token[2], cache_seqlens=lengths + 1, causal=True
        )
    assert len(kernels.calls) == 2
    scale = token[0].shape[-1] ** -0.5
    right = ForwardArgs(
        q=token[0], k=mirror[0], v=mirror[1], k_new=token[1], v_new=token[2], seqused_k=lengths + 1,
        softmax_scale=scale, causal=True, window_right=0,
    )  # fmt: skip
    torch.testing.assert_close(found, fallback.forward(right)[0])
    torch.testing.assert_close(caches, mirror)


def test_the_fast_path_of_dense_calls_falls_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Choosy()
    serving = engine(kernels.open)
    install(monkeypatch, serving)
    q, k, v = (tensor.requires_grad_() for tensor in half())
    for _ in range(2):  # the second takes the fast path
        right = flash_attn_func(q, k, v, causal=True)
    assert len(kernels.calls) == 2
    (expected,) = torch.autograd.grad(right.sum(), k)
    moved = shifted(k.detach()).requires_grad_()
    with pytest.warns(RuntimeWarning, match="The fallback serves such calls"):
        found = flash_attn_func(q, moved, v, causal=True)
    assert len(kernels.calls) == 2
    torch.testing.assert_close(found, right)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), moved)[0], expected)
