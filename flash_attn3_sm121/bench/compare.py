"""Two result files side by side. Each time is also compared as a share of its own run's ceiling."""

from __future__ import annotations

from dataclasses import dataclass

from flash_attn3_sm121.bench.contenders import BASELINE
from flash_attn3_sm121.bench.result import Report
from flash_attn3_sm121.bench.session import time_text
from flash_attn3_sm121.console import Block, Table

HEAD = ("workload", "contender", "A", "B", "A/B", "A/B by own ceiling", "lead on dense-mask A, B", "memory A/B")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One contender on one workload in both runs. Ratios above 1 mean that `b` is better."""

    workload: str
    contender: str
    a_ms: float
    b_ms: float
    a_peak: int | None
    b_peak: int | None
    a_share: float | None  # of the run's own ceiling
    b_share: float | None
    a_lead: float | None  # times faster than the dense mask in the same run
    b_lead: float | None

    @property
    def faster(self) -> float:
        return self.a_ms / self.b_ms

    @property
    def share_gain(self) -> float | None:
        return self.b_share / self.a_share if self.a_share and self.b_share else None


def compare(a: Report, b: Report) -> tuple[list[Line], list[str]]:
    """A line for each result that is right in both runs, and a sentence for each that is in one of them only."""
    lines: list[Line] = []
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
            if after is None or "ok" not in (before.status, after.status) or before.status != after.status:
                continue
            assert before.median_ms is not None and after.median_ms is not None
            lines.append(
                Line(
                    workload=left.workload.name,
                    contender=before.contender,
                    a_ms=before.median_ms,
                    b_ms=after.median_ms,
                    a_peak=before.peak_bytes,
                    b_peak=after.peak_bytes,
                    a_share=before.of_ceiling,
                    b_share=after.of_ceiling,
                    a_lead=left.times_faster(before.contender, BASELINE),
                    b_lead=right.times_faster(before.contender, BASELINE),
                )
            )
    remarks += [f"{name}: only in the second" for name in others]
    return lines, remarks


def comparison(a: Report, b: Report) -> list[Block]:
    """Two runs side by side, for a terminal or a pipe."""
    lines, remarks = compare(a, b)
    rows = []
    for line in lines:
        gain = "-" if line.share_gain is None else f"{line.share_gain:.2f}x"
        lead = "-" if line.a_lead is None or line.b_lead is None else f"{line.a_lead:.2f}x, {line.b_lead:.2f}x"
        memory = "-" if not line.a_peak or not line.b_peak else f"{line.a_peak / line.b_peak:.2f}x"
        times = (time_text(line.a_ms), time_text(line.b_ms), f"{line.faster:.2f}x")
        rows.append((line.workload, line.contender, *times, gain, lead, memory))
    blocks: list[Block] = [
        f"A: {a.title}, {a.date}, commit {a.commit} ({a.ceiling_tflops:.3g} TFLOP/s, {a.ceiling_gbps:.3g} GB/s)",
        f"B: {b.title}, {b.date}, commit {b.commit} ({b.ceiling_tflops:.3g} TFLOP/s, {b.ceiling_gbps:.3g} GB/s)",
        "",
        Table(head=HEAD, rows=rows, spare=(6, 3, 2)),
    ]
    if a.machine.get("device") != b.machine.get("device"):
        blocks += ["", "The devices differ: read the columns by own ceiling and the leads, not A/B."]
    return [*blocks, *([""] if remarks else []), *remarks]
