"""A Report as text: an aligned table for a terminal, the same in Markdown, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from flash_attn3_sm121.bench.contenders import BASELINE
from flash_attn3_sm121.bench.result import Entry, Report, WorkloadResult
from flash_attn3_sm121.bench.session import time_text
from flash_attn3_sm121.console import Block, Cell, Styled, Table, format_bytes

OURS = ("native", "sdpa", "flex")
COLUMNS: tuple[str, ...] = (
    "workload",
    "contender",
    "median",
    "spread",
    "peak memory",
    "rate",
    "of ceiling",
    "first call",
    "against dense-mask",
)


def rate_text(entry: Entry, bound: str) -> str:
    if bound == "compute":
        return "-" if entry.tflops is None else f"{entry.tflops:.3g} TFLOP/s"
    return "-" if entry.gbps is None else f"{entry.gbps:.3g} GB/s"


def ratio_text(result: WorkloadResult, entry: Entry) -> str:
    """Speed and memory compared with the dense mask of the same rounds."""
    base = result.entry(BASELINE)
    times = result.times_faster(entry.contender, BASELINE)
    if times is None or base is None or entry.contender == BASELINE:
        return "-"
    text = f"{times:.2f}x"
    if base.peak_bytes and entry.peak_bytes:
        text += f", {base.peak_bytes / entry.peak_bytes:.3g}x less memory" if base.peak_bytes > entry.peak_bytes else ""
    return text + (" (dense-mask is wrong)" if base.status == "wrong" else "")


def row(result: WorkloadResult, entry: Entry) -> tuple[str, ...]:
    name = result.workload.name
    if entry.median_ms is None:
        return (name, entry.contender, entry.status, "", "", "", "", "", entry.why)
    spread = f"{time_text(entry.low_ms)} .. {time_text(entry.high_ms)}"
    if entry.status == "wrong":
        median, peak = f"({time_text(entry.median_ms)})", format_bytes(entry.peak_bytes)
        return (name, entry.contender, median, spread, peak, "", "", time_text(entry.first_ms), f"WRONG: {entry.why}")
    share = "-" if entry.of_ceiling is None else f"{entry.of_ceiling:.0%}"
    return (
        name,
        entry.contender,
        time_text(entry.median_ms),
        spread,
        format_bytes(entry.peak_bytes),
        rate_text(entry, result.bound),
        share,
        time_text(entry.first_ms),
        ratio_text(result, entry),
    )


def in_order(result: WorkloadResult) -> list[Entry]:
    """A workload's entries: ranked ones first, then wrong ones, then those without a time."""
    ranked = result.ranked()
    rest = [entry for entry in result.entries if entry not in ranked]
    return ranked + sorted(rest, key=lambda entry: (entry.median_ms is None, entry.contender))


def head_lines(report: Report) -> list[str]:
    facts = ", ".join(f"{name} {value}" for name, value in report.machine.items() if name != "device")
    return [
        f"{report.title} ({facts})",
        f"{report.date}, commit {report.commit}, {report.command}, {report.seconds:.0f} s",
        f"measured in this run: {report.dtype} matmul {report.ceiling_tflops:.3g} TFLOP/s, copy "
        f"{report.ceiling_gbps:.3g} GB/s",
    ]


def table(report: Report, *, unserved: bool = False) -> list[Block]:
    """The results for a terminal or a pipe. `unserved` also lists who refused and why."""
    rows: list[list[Cell]] = []
    for result in report.results:
        previous = ""
        for entry in in_order(result):
            if entry.median_ms is None and entry.status != "failed" and not unserved:
                continue
            name, *cells = row(result, entry)
            rows.append(["" if name == previous else name, *cells])
            if entry.status in ("wrong", "failed"):
                rows[-1][-1] = Styled(cells[-1], "red")
            previous = name
    spare = [COLUMNS.index(name) for name in ("spread", "of ceiling", "first call", "rate")]
    return [
        *head_lines(report),
        "",
        Table(head=COLUMNS, rows=rows, spare=spare),
        *(f"note: {note}" for note in report.notes),
    ]


def markdown(report: Report) -> str:
    """The results as a Markdown table, for an issue or a README."""
    who, when, ceiling = head_lines(report)
    rows = [COLUMNS]
    for result in report.results:
        shown = (entry for entry in in_order(result) if entry.median_ms is not None or entry.status == "failed")
        rows += [row(result, entry) for entry in shown]
    return f"**{who}**  \n{when}  \n{ceiling}\n\n{markdown_table(rows)}"


def markdown_table(rows: Sequence[tuple[str, ...]]) -> str:
    """A table in Markdown, whose first row is the head."""
    head, *body = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows)
    return "\n".join([f"| {head} |", "|---" * len(rows[0]) + "|", *(f"| {line} |" for line in body)]) + "\n"


def to_csv(report: Report) -> str:
    """One line a contender and workload, numbers unrounded."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(
        ["workload", "contender", "status", "median_ms", "low_ms", "high_ms", "rounds", "peak_bytes", "tflops", "gbps",
         "of_ceiling", "rms_error", "times_faster_than_dense_mask", "why"]
    )  # fmt: skip
    for result in report.results:
        for e in result.entries:
            writer.writerow(
                [result.workload.name, e.contender, e.status, e.median_ms, e.low_ms, e.high_ms, len(e.samples_ms),
                 e.peak_bytes, e.tflops, e.gbps, e.of_ceiling, e.error, result.times_faster(e.contender, BASELINE),
                 e.why]
            )  # fmt: skip
    return sink.getvalue()
