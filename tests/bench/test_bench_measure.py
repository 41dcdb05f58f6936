"""Rounds, statistics and memory, without timing anything real."""

from __future__ import annotations

import json

import pytest
import torch

from flash_attn3_sm121.bench.measure import (
    Budget,
    Ceiling,
    inner_count,
    interleave,
    measure_ceiling,
    paired_ratio,
    quartiles,
)
from flash_attn3_sm121.bench.memory import peak_bytes, peak_from_trace

CPU = torch.device("cpu")


class Clockwork:
    """Time that passes only when a call is made."""

    def __init__(self, **costs: float) -> None:
        self.now, self.log, self.costs = 0.0, [], costs  # type: ignore[var-annotated]

    def call(self, name: str) -> None:
        self.log.append(name)
        self.now += self.costs[name]

    def clock(self, call: object) -> float:
        before = self.now
        call()  # type: ignore[operator]
        return (self.now - before) * 1e3


def test_rounds_are_interleaved_and_rotate() -> None:
    work = Clockwork(a=0.1, b=0.2)
    samples = interleave(
        {"a": lambda: work.call("a"), "b": lambda: work.call("b")},
        Budget(seconds=100, least=3, most=4),
        work.clock,
        now=lambda: work.now,
    )
    assert "".join(work.log) == "aabb" + "ab" + "ba" + "ab" + "ba"
    assert samples["a"] == pytest.approx([100.0] * 4) and samples["b"] == pytest.approx([200.0] * 4)


def test_the_budget_ends_it_but_never_below_the_least() -> None:
    work = Clockwork(a=1.0)
    run = {"a": lambda: work.call("a")}
    assert len(interleave(run, Budget(seconds=5.5, least=1), work.clock, now=lambda: work.now)["a"]) == 5
    assert len(interleave(run, Budget(seconds=0.1, least=3), work.clock, now=lambda: work.now)["a"]) == 3


def test_short_calls_are_timed_many_at_once() -> None:
    budget = Budget(seconds=1, batch_ms=2.0)
    assert [inner_count(ms, budget) for ms in (0.001, 0.5, 1.9, 50.0)] == [1000, 4, 1, 1]
    work = Clockwork(a=0.0005)
    samples = interleave({"a": lambda: work.call("a")}, Budget(seconds=1, least=2, most=2), work.clock,
                         now=lambda: work.now)  # fmt: skip
    assert samples["a"] == pytest.approx([0.5, 0.5]) and len(work.log) == 2 + 2 * 4


def test_statistics() -> None:
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == (2.0, 3.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)
    # A slow third round hits both sides: the paired ratio does not move.
    assert paired_ratio([10.0, 10.0, 90.0], [1.0, 1.0, 9.0]) == 10.0


def test_peak_memory_is_what_the_allocator_saw() -> None:
    size = 1 << 20

    def call() -> torch.Tensor:
        first = torch.zeros(size)
        second = first + 1
        del first
        return second.sum()

    peak = peak_bytes(call, CPU)
    assert peak is not None and 2 * 4 * size <= peak < 2 * 4 * size + 65536


def test_peak_memory_sees_scratch_inside_an_op() -> None:
    q = torch.randn(1, 2, 256, 32, dtype=torch.bfloat16)
    mask = torch.ones(256, 256, dtype=torch.bool)
    result = q.numel() * 2
    peak = peak_bytes(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask), CPU)
    assert peak is not None and peak > result + 256 * 256  # the mask is converted inside


def test_peak_of_a_trace() -> None:
    def event(ts: float, count: int) -> dict[str, object]:
        return {"name": "[memory]", "ts": ts, "args": {"Bytes": count}}

    events = [event(3, -100), event(1, 100), event(2, 50), event(4, 30), {"name": "aten::add", "ts": 0}]
    assert peak_from_trace(json.dumps({"traceEvents": events})) == 150


def test_memory_measuring_leaves_the_streams_alone(capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    peak_bytes(lambda: torch.zeros(10), CPU)
    print("after")
    out, err = capfd.readouterr()
    assert out == "before\nafter\n" and err == ""


def test_the_ceiling_is_measured_and_bounds() -> None:
    top = measure_ceiling(CPU, "fp32", seconds=0.05)
    assert top.tflops > 0 and top.gbps > 0
    fixed = Ceiling(dtype="bf16", tflops=1.0, gbps=100.0)
    assert fixed.bound(1e12, 10**9) == "compute" and fixed.ideal_ms(1e12, 10**9) == pytest.approx(1000)
    assert fixed.bound(1e9, 10**9) == "memory" and fixed.ideal_ms(1e9, 10**9) == pytest.approx(10)
