"""Timing in rounds in which every contender runs once, so that ratios hold on a machine that is not idle; and the
run's ceiling, the rates of a large matmul and a large copy, measured in the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from flash_attn3_sm121.bench.case import DTYPES

Clock = Callable[[Callable[[], object]], float]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a workload may take. Each contender runs at least `least` times, even beyond `seconds`."""

    seconds: float
    least: int = 3
    most: int = 50
    batch_ms: float = 2.0  # calls shorter than this are timed several at a time


def clock_of(device: torch.device) -> Clock:
    """Milliseconds of one call: the host's clock, or CUDA events around the work on the device."""
    if device.type != "cuda":

        def host(call: Callable[[], object]) -> float:
            if device.type == "mps":
                torch.mps.synchronize()
            started = time.perf_counter()
            call()
            if device.type == "mps":
                torch.mps.synchronize()
            return (time.perf_counter() - started) * 1e3

        return host

    def events(call: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    return events


def inner_count(first_ms: float, budget: Budget) -> int:
    """How many calls make one sample: enough for the clock to see them."""
    return max(1, min(1000, int(budget.batch_ms / max(first_ms, 1e-3))))


def interleave(
    runs: Mapping[str, Callable[[], object]],
    budget: Budget,
    clock: Clock,
    *,
    now: Callable[[], float] = time.monotonic,
    tick: Callable[[int], None] = lambda n: None,
) -> dict[str, list[float]]:
    """Time all contenders, round after round.

    Args:
        runs: the calls to time, by contender.
        clock: gives the milliseconds of a call.
        tick: told the number of each round that has ended.

    Returns:
        Milliseconds of one call by contender; index i of every list is the same round.
    """
    counts: dict[str, int] = {}
    for name, run in runs.items():
        run()
        counts[name] = inner_count(clock(run), budget)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    started = now()
    for turn in range(budget.most):
        spent = now() - started
        if turn >= budget.least and spent + spent / turn > budget.seconds:
            break
        # Each round starts with another contender, so that none always runs after the same one.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            count, run = counts[name], runs[name]

            def several(count: int = count, run: Callable[[], object] = run) -> None:
                for _ in range(count):
                    run()

            samples[name].append(clock(several) / count)
        tick(turn + 1)
    return samples


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """(first quartile, median, third quartile)."""
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, median, high


def paired_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times faster `fast` is: the median over rounds, so that a slow moment hits both sides."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """The best of the samples: a ceiling is the highest rate that was reached."""

    dtype: str
    tflops: float
    gbps: float

    def ideal_ms(self, flops: float, moved: int) -> float:
        """The least time this device could take, if the slower of the two limits were the only one."""
        return max(flops / (self.tflops * 1e12), moved / (self.gbps * 1e9)) * 1e3

    def bound(self, flops: float, moved: int) -> str:
        return "compute" if flops / (self.tflops * 1e12) >= moved / (self.gbps * 1e9) else "memory"


def measure_ceiling(device: torch.device, dtype: str, *, seconds: float = 2.0) -> Ceiling:
    side, length = (8192, 1 << 29) if device.type == "cuda" else (1536, 1 << 26)
    a, b = (torch.randn(side, side, device=device).to(DTYPES[dtype]) for _ in range(2))
    source = torch.zeros(length, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    samples = interleave(
        {"matmul": lambda: torch.mm(a, b), "copy": lambda: target.copy_(source)},
        Budget(seconds=seconds, least=5),
        clock_of(device),
    )
    return Ceiling(
        dtype=dtype,
        tflops=2 * side**3 / (min(samples["matmul"]) * 1e-3) / 1e12,
        gbps=2 * length / (min(samples["copy"]) * 1e-3) / 1e9,  # read and written
    )
