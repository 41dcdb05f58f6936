"""Tensors that kernels cannot read as they lie, or that are too many: they are copied, or the fallback serves them."""

from __future__ import annotations

from contextlib import nullcontext
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
from tests.fakes.libraries import CAUSAL, FULL, Kernels, engine, half, install

REFUSALS = (
    "FlashAttention-3: k starts at no multiple of 16 bytes",
    "FlashAttention-3: q has stride 66 in dimension 2, no multiple of 16 bytes",
    "FlashAttention-3: CUDA driver error 1 for a TMA descriptor",
    "mha_fwd, flash_api_stable.cpp:1011, Output tensor must have contiguous last dimension",
    "FlashAttention-3: CUDA error: cudaErrorInvalidConfiguration: invalid configuration argument (kernel launch)",
    "FlashAttention-3: CUDA error: cudaErrorInvalidValue: invalid argument (kernel launch)",
    "mha_fwd, flash_api_stable.cpp:1098, If k_new is supplied, it must have seqlen <= the seqlen of the KV cache",
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


def backward_of(q: Tensor, k: Tensor, **more: Any) -> BackwardArgs:
    return BackwardArgs(dout=q, q=q, k=k, v=k, out=q, softmax_lse=q, softmax_scale=1.0, **more)


def test_a_backward_whose_scratch_32_bits_cannot_count_is_refused() -> None:
    """Of 2 x 524288 rows, 32 heads of 128: the second sequence's dQ would lie 2^31 numbers before the first's."""

    def refused(q: tuple[int, ...], k: tuple[int, ...], **more: Any) -> bool:
        tensors = (torch.zeros(1).bfloat16().expand(shape) for shape in (q, k))
        try:
            library.assert_indexed(backward_of(*tensors, **more), (64, 128, 256))
        except RuntimeError as error:
            assert library.is_too_large(error) and library.is_refused(error)
            return True
        return False

    rows = 2**19
    assert refused((2, rows, 32, 128), (2, rows, 8, 128))
    assert refused((2, rows, 32, 96), (2, rows, 8, 96)), "the kernel's head dim counts"
    assert refused((2, 64, 64, 128), (2, rows, 32, 128)), "the scratch of dk and dv, too"
    assert not refused((2, 64, 32, 128), (2, rows, 32, 128)), "which heads of their own do not have"
    assert not refused((1, rows, 32, 128), (1, rows, 8, 128)), "one sequence has no stride to the next"
    assert not refused((2, rows - 256, 32, 128), (2, rows, 8, 128))
    cu = torch.zeros(3, dtype=torch.int32)
    assert refused((2**24, 1, 128), (2**24, 1, 128), cu_seqlens_q=cu, cu_seqlens_k=cu)
    assert not refused((2**23, 1, 128), (2**23, 1, 128), cu_seqlens_q=cu, cu_seqlens_k=cu)
    used = torch.zeros(1, dtype=torch.int32).expand(64)
    assert refused((64, 2**18, 1, 128), (64, 2**18, 1, 128), seqused_k=used)


def test_the_fallback_serves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = half()
    kernels = Choosy()
    serving = engine(kernels.open)
    out, lse, *_ = serving.forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))
    args = BackwardArgs(dout=torch.randn_like(out), q=q, k=k, v=v, out=out, softmax_lse=lse, **CAUSAL)
    right = serving.backward(args)
    monkeypatch.setattr(library, "INDEXED", 16)
    with pytest.warns(RuntimeWarning, match=r"more than 32 bits count. The fallback serves such calls\.$"):
        found = serving.backward(args)
    assert kernels.backward_calls == 1
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
    assert not library.is_refused(RuntimeError(kernels.words))


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


def test_a_full_memory_is_torchs_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that try again with less look for it."""
    kernels = Kernels()
    install(monkeypatch, engine(kernels.open))
    q, k, v = half()

    def full(_: Tensor) -> None:
        raise FULL

    for spoil in (full, lambda _: None, full):  # the last one takes the fast path
        kernels.spoil = spoil
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory") if spoil is full else nullcontext():
            flash_attn_func(q, k, v, causal=True)
    assert len(kernels.calls) == 4, "the engine asks the kernel again, and not the fallback"


def strided(tensor: Tensor) -> Tensor:
    """The same values, every second column of wider rows."""
    wide = torch.empty(*tensor.shape, 2, dtype=tensor.dtype)
    return wide[..., 0].copy_(tensor)


@pytest.mark.parametrize("name", ["cache_seqlens", "cache_batch_idx", "k", "v", "rotary_cos"])
def test_what_kernels_want_contiguous_is_made_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first call, and where later ones take the fast path."""
    kernels = Kernels()
    install(monkeypatch, engine(kernels.open))
    q, k, v = half(sq=1, sk=1)
    given = {"k": k, "v": v, "cache_seqlens": torch.tensor([0, 2], dtype=torch.int32)}
    given["cache_batch_idx"] = torch.tensor([1, 0], dtype=torch.int32)
    if name == "rotary_cos":
        given |= {"rotary_cos": torch.ones(8, 8, dtype=q.dtype), "rotary_sin": torch.zeros(8, 8, dtype=q.dtype)}
    found = []
    other = {name: given[name].repeat(1, 2)[:, :8] if name == "rotary_cos" else strided(given[name])}
    for change in ({}, {}, other, other):
        caches = [torch.zeros(2, 8, 2, 16, dtype=q.dtype) for _ in range(2)]
        found.append((flash_attn_with_kvcache(q, *caches, **{**given, **change}), *caches))
    assert len(kernels.calls) == 4
    for more in found[1:]:
        torch.testing.assert_close(more, found[0])


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
