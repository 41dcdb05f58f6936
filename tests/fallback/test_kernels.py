"""torch's fused kernels: believed only when they compute correctly, and called with arguments that they accept."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from flash_attn3_sm121 import fallback
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.fallback import cpu_kernel, cuda_kernel, kernels, selfcheck
from flash_attn3_sm121.fallback.blocked import Scoring

CPU = torch.device("cpu")


@pytest.fixture
def fresh() -> Iterator[None]:
    """The verdict is kept per process; look again."""
    kernels.refusal.cache_clear()
    yield
    kernels.refusal.cache_clear()


@pytest.mark.parametrize("dtype", cpu_kernel.TYPES)
@pytest.mark.parametrize("dim", [8, 16, 64, 128, 256])
def test_the_cpu_kernel_passes(dtype: torch.dtype, dim: int) -> None:
    assert selfcheck.failure(cpu_kernel, device=CPU, dtype=dtype, dim=dim, group=2) is None


class Wrong(ModuleType):
    """The CPU kernel with one result spoiled."""

    TYPES = cpu_kernel.TYPES

    def __init__(self, spoiled: str) -> None:
        super().__init__("wrong")
        self.spoiled = spoiled

    def forward(self, *tensors: Any, **options: Any) -> Any:
        out, lse = cpu_kernel.forward(*tensors, **options)
        if self.spoiled == "refusal":
            raise RuntimeError("no kernel for this device")
        if self.spoiled == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.spoiled == "mask" and options.get("mask") is not None:
            options["mask"] = torch.zeros_like(options["mask"])
            return cpu_kernel.forward(*tensors, **options)
        if self.spoiled == "lse shape":
            return out, lse.transpose(1, 2)
        return (out * 1.01 if self.spoiled == "out" else out), (lse + 0.01 if self.spoiled == "lse" else lse)

    def backward(self, *tensors: Any, **options: Any) -> Any:
        names = ("dq", "dk", "dv")
        results = cpu_kernel.backward(*tensors, **options)
        return tuple(r * 1.01 if n == self.spoiled else r for n, r in zip(names, results, strict=True))


@pytest.mark.parametrize("spoiled", ["out", "lse", "lse shape", "mask", "dq", "dk", "dv", "refusal"])
def test_a_wrong_kernel_is_found_out_and_the_blocked_path_serves(
    spoiled: str, fresh: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "cpu_kernel", Wrong(spoiled))
    q = torch.randn(1, 4, 2, 16)
    with caplog.at_level(logging.WARNING):
        assert kernels.pick(q, q, q, None, Scoring(scale=1.0)) is None
    assert "is not used" in caplog.text
    expected = "no kernel for this device" if spoiled == "refusal" else spoiled.split()[0].replace("mask", "out")
    assert expected in caplog.text
    out, _ = fallback.forward(ForwardArgs(q=q, k=q, v=q, softmax_scale=0.25))
    want = torch.nn.functional.scaled_dot_product_attention(*(q.transpose(1, 2),) * 3, scale=0.25).transpose(1, 2)
    assert torch.allclose(out, want, atol=1e-5)


def test_a_full_memory_is_no_verdict(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.randn(1, 4, 2, 16)
    with monkeypatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
        patched.setattr(kernels, "cpu_kernel", Wrong("memory"))
        kernels.pick(q, q, q, None, Scoring(scale=1.0))
    assert kernels.pick(q, q, q, None, Scoring(scale=1.0)) is cpu_kernel, "it is asked again"


def test_what_no_fused_kernel_serves() -> None:
    q, narrow, wide = torch.randn(1, 4, 2, 16), torch.randn(1, 4, 2, 8), torch.randn(1, 4, 2, 24)
    assert kernels.pick(q, q, q, None, Scoring(scale=1.0)) is cpu_kernel
    assert kernels.pick(q, q, narrow, None, Scoring(scale=1.0)) is cpu_kernel
    assert kernels.pick(q, q, wide, None, Scoring(scale=1.0)) is None
    assert kernels.pick(q, q, q, None, Scoring(scale=1.0, softcap=3.0)) is None
    assert kernels.pick(q, q, q, q, Scoring(scale=1.0)) is None
    assert kernels.pick(*(torch.empty(1, 4, 2, 16, device="meta"),) * 3, None, Scoring(scale=1.0)) is None


@pytest.mark.parametrize("dtype", cuda_kernel.TYPES)
@pytest.mark.parametrize("kind", ["full", "causal", "mask"])
@pytest.mark.parametrize("heads", [2, 6], ids=["equal", "grouped"])
def test_the_cuda_operators_take_our_arguments(dtype: torch.dtype, kind: str, heads: int) -> None:
    """Shapes and signatures only, without a device: tensors that hold no numbers."""
    q, dout = (torch.empty(3, 40, heads, 64, dtype=dtype, device="meta").transpose(1, 2) for _ in range(2))
    keys = 40 if kind == "causal" else 56
    k, v = (torch.empty(3, keys, 2, 64, dtype=dtype, device="meta").transpose(1, 2) for _ in range(2))
    mask = torch.empty(40, keys, dtype=dtype, device="meta") if kind == "mask" else None
    options: dict[str, Any] = {"scale": 0.1, "causal": kind == "causal", "mask": mask}
    out, lse = cuda_kernel.forward(q, k, v, **options)
    assert out.shape == q.shape and lse.shape == (3, heads, 40)
    gradients = cuda_kernel.backward(dout, q, k, v, out, lse, **options)
    assert [tuple(g.shape) for g in gradients] == [tuple(q.shape), tuple(k.shape), tuple(v.shape)]


@pytest.mark.parametrize("asked", [False, True])
def test_a_deterministic_backward_asks_for_the_ordered_kernel(asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def pick(*tensors: Any, ordered: bool = False) -> None:
        seen.append(ordered)

    monkeypatch.setattr(kernels, "pick", pick)
    q = torch.randn(1, 4, 2, 16)
    out, lse = torch.randn(1, 4, 2, 16), torch.randn(1, 2, 4)
    call = {"dout": out, "q": q, "k": q, "v": q, "out": out, "softmax_lse": lse, "softmax_scale": 0.25}
    fallback.backward(BackwardArgs(**call, deterministic=asked))
    assert seen == [asked]


def needs_device() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", cuda_kernel.TYPES)
@pytest.mark.parametrize("dim", [16, 64, 128, 256])
@pytest.mark.parametrize("group", [1, 2])
def test_the_cuda_kernel_passes(dtype: torch.dtype, dim: int, group: int) -> None:
    assert selfcheck.failure(cuda_kernel, device=needs_device(), dtype=dtype, dim=dim, group=group) is None


@pytest.mark.gpu
@pytest.mark.parametrize("process", [False, True], ids=["this call", "the whole process"])
@pytest.mark.parametrize("window", [-1, 100])
@pytest.mark.parametrize("dim", [64, 128])
def test_a_deterministic_backward_gives_the_same_bits_each_time(dim: int, window: int, process: bool) -> None:
    """1024 keys: many blocks, which torch's kernel adds up in the order in which they finish, if it may."""
    device = needs_device()
    q, k, v, dout = (torch.randn(2, 1024, 4, dim, dtype=torch.bfloat16, device=device) for _ in range(4))
    call = {"softmax_scale": dim**-0.5, "causal": True, "window_left": window, "window_right": 0}
    out, lse = fallback.forward(ForwardArgs(q=q, k=k, v=v, **call))
    args = BackwardArgs(dout=dout, q=q, k=k, v=v, out=out, softmax_lse=lse, deterministic=True, **call)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(process)
    try:
        first, *others = [fallback.backward(args) for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(before)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first[:3], other[:3], strict=True))
