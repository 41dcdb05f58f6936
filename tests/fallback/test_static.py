"""The path that reads no length: equal to the reference, never synchronising, deaf to garbage behind the end."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flash_attn3_sm121.call.arguments import ForwardArgs
from flash_attn3_sm121.fallback import host, static
from tests.fallback import generate, reference
from tests.fallback.compare import LSE_TOLERANCE, TOLERANCE, assert_close
from tests.fallback.operators import no_reads


def run(make: str, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(start, start + 25):
        args = getattr(generate, make)(seed)
        want, mine = reference.expected(args), copy.deepcopy(args)
        try:
            with no_reads(monkeypatch):
                out, lse = static.forward(mine)
            assert out.is_contiguous() and lse.is_contiguous() and lse.dtype == torch.float32
            assert_close(out, want.out, TOLERANCE[args.q.dtype], "out")
            assert_close(lse, want.lse, LSE_TOLERANCE[args.q.dtype], "lse")
            assert_close(mine.k, want.k.double(), 1e-2, "k cache")
            assert torch.equal(mine.v, want.v), "v cache"
        except Exception as error:
            raise AssertionError(f"generate.{make}({seed}): {error}") from error


@pytest.mark.parametrize("cuts", ["usual", "tiny"], indirect=True)
@pytest.mark.parametrize("start", range(300_000, 300_250, 25))
def test_dense_and_packed(start: int, cuts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run("dense", start, monkeypatch)


@pytest.mark.parametrize("cuts", ["usual", "tiny"], indirect=True)
@pytest.mark.parametrize("start", range(400_000, 400_500, 25))
def test_cache(start: int, cuts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run("cache", start, monkeypatch)


def test_the_guard_catches_the_path_that_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="waits for the device"), no_reads(monkeypatch):
        host.forward(generate.cache(400_000))
    with pytest.raises(AssertionError, match="waits for the device"), no_reads(monkeypatch):
        float(torch.ones(()))


def decode(**fields: Any) -> ForwardArgs:
    generator = torch.Generator().manual_seed(1)
    k, v = (torch.randn(3, 32, 2, 16, generator=generator) for _ in range(2))
    q = torch.randn(3, 1, 4, 16, generator=generator)
    return ForwardArgs(q=q, k=k, v=v, softmax_scale=0.25, causal=True, window_right=0, **fields)


@pytest.mark.parametrize("window", [-1, 5], ids=["full", "window"])
def test_garbage_behind_the_end_does_not_leak(window: int) -> None:
    args = decode(seqused_k=torch.tensor([4, 0, 32], dtype=torch.int32), window_left=window)
    want = static.forward(args)
    for row, used in enumerate((4, 0, 32)):
        args.k[row, used:] = torch.nan
        args.v[row, used:] = torch.inf
    for found, expected in zip(static.forward(args), want, strict=True):
        assert torch.equal(found, expected)


def test_launches_do_not_depend_on_the_lengths() -> None:
    class Record(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(f"{func} {[tuple(a.shape) for a in args if isinstance(a, torch.Tensor)]}")
            return func(*args, **(kwargs or {}))

    traces = []
    for lengths in ([0, 1, 2], [31, 7, 30]):
        new = {"k_new": torch.randn(3, 1, 2, 16), "v_new": torch.randn(3, 1, 2, 16)}
        with Record() as record:
            static.forward(decode(seqused_k=torch.tensor(lengths, dtype=torch.int32), **new))
        traces.append(record.names)
    assert traces[0] == traces[1]


@pytest.mark.parametrize("lengths", [[32, 0, 0], [0, 31, 40]], ids=["full", "beyond"])
def test_an_overflow_stops_before_the_write(lengths: list[int]) -> None:
    new = {"k_new": torch.ones(3, 1, 2, 16), "v_new": torch.ones(3, 1, 2, 16)}
    args = decode(seqused_k=torch.tensor(lengths, dtype=torch.int32), **new)
    before = args.k.clone(), args.v.clone()
    with pytest.raises(RuntimeError, match="exceed the cache"):
        static.forward(args)
    assert torch.equal(args.k, before[0]) and torch.equal(args.v, before[1])


def test_a_missing_page_stops_before_the_write() -> None:
    table = torch.tensor([[0, 1], [2, -1], [4, 5]], dtype=torch.int32)
    new = {"k_new": torch.ones(3, 1, 2, 16), "v_new": torch.ones(3, 1, 2, 16)}
    args = decode(seqused_k=torch.tensor([4, 4, 4], dtype=torch.int32), page_table=table, **new)
    args.k, args.v = torch.zeros(6, 4, 2, 16), torch.zeros(6, 4, 2, 16)
    with pytest.raises(RuntimeError, match="not allocated"):
        static.forward(args)
    assert not args.k.any()
