"""Two result files side by side. Each time is also compared as a share of its own run's ceiling."""

from __future__ import annotations

from flash_attn3_sm121.bench.contenders import BASELINE
from flash_attn3_sm121.bench.result import Entry, Report, WorkloadResult
from flash_attn3_sm121.bench.session import time_text
from flash_attn3_sm121.console import Block, Table

HEAD = ("workload", "contender", "A", "B", "A/B", "A/B by own ceiling", "lead on dense-mask A, B", "memory A/B")


def _ratio(a: float | None, b: float | None) -> str:
    return f"{a / b:.2f}x" if a and b else "-"


def _row(left: WorkloadResult, before: Entry, right: WorkloadResult, after: Entry) -> tuple[str, ...]:
    """The cells of `HEAD`. Ratios above 1 mean that the second run is better."""
    leads = [result.times_faster(before.contender, BASELINE) for result in (left, right)]
    return (
        left.workload.name,
        before.contender,
        time_text(before.median_ms),
        time_text(after.median_ms),
        _ratio(before.median_ms, after.median_ms),
        _ratio(after.of_ceiling, before.of_ceiling),
        "-" if None in leads else ", ".join(f"{lead:.2f}x" for lead in leads),
        _ratio(before.peak_bytes, after.peak_bytes),
    )


def compare(a: Report, b: Report) -> tuple[list[tuple[str, ...]], list[str]]:
    """A row for each result that is right in both runs, and a sentence for each that is in one of them only."""
    rows: list[tuple[str, ...]] = []
    remarks: list[str] = []
    others = {result.workload.name: result for result in b.results}
    for left in a.results:
        right = others.pop(left.workload.name, None)
        if right is None:
            remarks.append(f"{left.workload.name}: only in the first")
            continue
        if left.workload != right.workload:
            remarks.append(f"{left.workload.name}: not the same shapes; left out")
            continue
        for before in left.entries:
            after = right.entry(before.contender)
            if after is None or before.status != after.status:
                then = "absent" if after is None else after.status
                remarks.append(f"{left.workload.name} / {before.contender}: {before.status}, then {then}")
            elif before.status == "ok":
                rows.append(_row(left, before, right, after))
    remarks += [f"{name}: only in the second" for name in others]
    return rows, remarks


def comparison(a: Report, b: Report) -> list[Block]:
    """Two runs side by side, for a terminal or a pipe."""
    rows, remarks = compare(a, b)
    blocks: list[Block] = [
        f"A: {a.title}, {a.date}, commit {a.commit} ({a.ceiling_tflops:.3g} TFLOP/s, {a.ceiling_gbps:.3g} GB/s)",
        f"B: {b.title}, {b.date}, commit {b.commit} ({b.ceiling_tflops:.3g} TFLOP/s, {b.ceiling_gbps:.3g} GB/s)",
        "",
        Table(head=HEAD, rows=rows, spare=(6, 3, 2)),
    ]
    if a.machine.get("device") != b.machine.get("device"):
        blocks += ["", "The devices differ: read the columns by own ceiling and the leads, not A/B."]
    return [*blocks, *([""] if remarks else []), *remarks]
