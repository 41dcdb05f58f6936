"""One run of the bench: every workload with every contender, checked and timed."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from flash_attn3_sm121.bench.case import Case, build
from flash_attn3_sm121.bench.check import Results, Verdict, check_results, reference
from flash_attn3_sm121.bench.contenders.base import Contender, Refused, Runner
from flash_attn3_sm121.bench.measure import Budget, Ceiling, clock_of, interleave, quartiles
from flash_attn3_sm121.bench.memory import peak_bytes
from flash_attn3_sm121.bench.result import Entry, WorkloadResult
from flash_attn3_sm121.bench.workloads import Workload
from flash_attn3_sm121.console import Narrator, format_seconds

# Contenders that write out every score, and those that compile for each shape.
NAIVE = frozenset({"torch-math"})
COMPILED = frozenset({"flex"})


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a run allows. `memory_limit` is in bytes; `compile_everywhere` lets flex compile for every workload."""

    budget: Budget
    memory_limit: float
    compile_everywhere: bool
    device: torch.device


@dataclass(frozen=True, kw_only=True, eq=False)
class Ready:
    """A contender that has answered once, whether rightly, and how long that took: loading, compiling, planning."""

    run: Runner
    verdict: Verdict
    first_ms: float


def _skip(contender: Contender, work: Workload, rules: Rules) -> str | None:
    if contender.name in NAIVE and 2 * work.score_bytes > rules.memory_limit:
        return f"would write {work.score_bytes / 2**30:.1f} GiB of scores"
    if contender.name in COMPILED and not rules.compile_everywhere and not work.compile_in_quick:
        return "left out of --quick for its compile time (--backend flex)"
    return None


def _try(contender: Contender, case: Case, want: Results, rules: Rules) -> Entry | Ready:
    why = _skip(contender, case.workload, rules)
    if why is not None:
        return Entry(contender=contender.name, status="skipped", why=why)
    if case.workload.fp8 and not getattr(contender, "fp8", False):
        return Entry(contender=contender.name, status="refused", why="it takes no tensors in e4m3 here")
    slack = getattr(contender, "slack", 1.0)
    started = time.perf_counter()
    try:
        run = contender.prepare(case)
        answer = run()
        if rules.device.type == "cuda":
            torch.cuda.synchronize(rules.device)
        first = time.perf_counter() - started
        verdict = check_results(answer, want, case.workload.dtype, slack=slack)
    except Refused as refused:
        return Entry(contender=contender.name, status="refused", why=str(refused))
    # Kernels and compilers of others raise any exception; it is shown with its type, and the run goes on.
    except Exception as error:  # noqa: BLE001
        text = str(error).strip().splitlines() or ["no message"]
        return Entry(contender=contender.name, status="failed", why=f"{type(error).__name__}: {text[0]}")
    return Ready(run=run, verdict=verdict, first_ms=first * 1e3)


def _entry(name: str, ready: Ready, samples: Sequence[float], peak: int | None, work: Workload, top: Ceiling) -> Entry:
    low, median, high = quartiles(samples)
    seconds = median * 1e-3
    right = ready.verdict.why is None
    return Entry(
        contender=name,
        status="ok" if right else "wrong",
        why=ready.verdict.why or "",
        error=ready.verdict.rms,
        tolerance=ready.verdict.tolerance,
        first_ms=ready.first_ms,
        median_ms=median,
        low_ms=low,
        high_ms=high,
        samples_ms=tuple(samples),
        peak_bytes=peak,
        tflops=work.flops / seconds / 1e12 if right else None,
        gbps=work.bytes / seconds / 1e9 if right else None,
        of_ceiling=top.ideal_ms(work.flops, work.bytes) / median if right else None,
    )


def measure_workload(
    work: Workload, contenders: Sequence[Contender], rules: Rules, top: Ceiling, *, say: Callable[[str], None]
) -> WorkloadResult:
    """Compute the reference, check each contender, then take memory and interleaved times of those that answered.

    Args:
        say: told what is being done at the moment.
    """
    say("reference")
    case = build(work, rules.device)
    want = reference(case)
    ready: dict[str, Ready] = {}
    entries: dict[str, Entry] = {}
    for contender in contenders:
        say(f"checking {contender.name}")
        tried = _try(contender, case, want, rules)
        if isinstance(tried, Ready):
            ready[contender.name] = tried
        else:
            entries[contender.name] = tried
    del want
    peaks: dict[str, int | None] = {}
    for name, one in ready.items():
        say(f"memory of {name}")
        gc.collect()
        peaks[name] = peak_bytes(one.run, rules.device)
    samples = interleave(
        {name: one.run for name, one in ready.items()},
        rules.budget,
        clock_of(rules.device),
        tick=lambda n: say(f"round {n}"),
    )
    for name, one in ready.items():
        entries[name] = _entry(name, one, samples[name], peaks[name], work, top)
    return WorkloadResult(
        workload=work,
        flops=work.flops,
        bytes=work.bytes,
        bound=top.bound(work.flops, work.bytes),
        entries=tuple(entries[contender.name] for contender in contenders),
    )


def summary(result: WorkloadResult) -> str:
    """One line about a workload: the ranking, then the contenders that were wrong or failed."""
    parts = [f"{entry.contender} {time_text(entry.median_ms)}" for entry in result.ranked()]
    parts += [f"{entry.contender} WRONG" for entry in result.entries if entry.status == "wrong"]
    parts += [f"{entry.contender} FAILED" for entry in result.entries if entry.status == "failed"]
    return ", ".join(parts) or "no contender serves it"


def time_text(ms: float | None) -> str:
    """Milliseconds as people read them; None is `-`."""
    return format_seconds(None if ms is None else ms * 1e-3)


def measure_all(
    works: Sequence[Workload], contenders: Sequence[Contender], rules: Rules, top: Ceiling, narrate: Narrator
) -> tuple[WorkloadResult, ...]:
    """Measure every workload, with progress on stderr."""
    results = []
    with narrate.progress("bench", len(works), unit="workloads") as progress:
        for number, work in enumerate(works, start=1):
            narrate.note(f"[{number:>2}/{len(works)}] {work.name}: {work.about}")
            results.append(measure_workload(work, contenders, rules, top, say=progress.tell))
            narrate.note(f"        {summary(results[-1])}")
            progress.advance(detail="")
            gc.collect()
            if rules.device.type == "cuda":
                torch.cuda.empty_cache()
    return tuple(results)
