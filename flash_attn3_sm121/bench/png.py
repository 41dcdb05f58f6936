"""The report's plots as one picture, for places that show no HTML. Needs matplotlib (the extra `bench`)."""

from __future__ import annotations

import io
import math
from typing import Any

from flash_attn3_sm121.bench.contenders import BASELINE
from flash_attn3_sm121.bench.plots import lead_scale, leads
from flash_attn3_sm121.bench.result import Report, WorkloadResult
from flash_attn3_sm121.bench.session import NAIVE, time_text
from flash_attn3_sm121.bench.style import COLOURS, OTHER
from flash_attn3_sm121.bench.text import OURS, bytes_text, in_order
from flash_attn3_sm121.errors import UsageError

COLUMNS = 3
INK, SOFT, TRACK = "#1b2028", "#5b6573", "#eef1f5"


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError(
            f"--png needs matplotlib: {error}", hint="pip install 'flash_attn3_sm121[bench]', or use --html"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _colour(name: str) -> str:
    return COLOURS.get(name, OTHER)[0]


def _bars(axes: Any, result: WorkloadResult) -> None:
    """One workload: medians, quartiles, peak memory; the naive contender's bar may leave the picture."""
    entries = [entry for entry in in_order(result) if entry.median_ms is not None]
    others = [entry for entry in entries if entry.contender not in NAIVE] or entries
    longest = max((entry.high_ms or 0.0 for entry in others), default=1.0)
    for at, entry in enumerate(entries):
        assert entry.median_ms is not None and entry.low_ms is not None and entry.high_ms is not None
        wrong = entry.status == "wrong"
        colour = _colour(entry.contender)
        axes.barh(at, longest, height=0.62, color=TRACK, zorder=0)
        axes.barh(
            at, min(entry.median_ms, longest), height=0.62, color="none" if wrong else colour,
            edgecolor=colour, linestyle="--" if wrong else "-", zorder=1,
        )  # fmt: skip
        if entry.median_ms <= longest:
            axes.plot([entry.low_ms, entry.high_ms], [at, at], color=INK, lw=1, zorder=2)
        else:
            axes.barh(at, longest * 0.015, left=longest * 0.94, height=0.66, color="white", zorder=2)
        said = f"wrong ({time_text(entry.median_ms)})" if wrong else time_text(entry.median_ms)
        axes.text(
            longest * 1.03, at, f"{said}, {bytes_text(entry.peak_bytes)}", va="center", fontsize=7.5,
            color="#c0362c" if wrong else INK,
        )  # fmt: skip
    axes.set_yticks(range(len(entries)), [entry.contender for entry in entries], fontsize=8)
    for label, entry in zip(axes.get_yticklabels(), entries, strict=True):
        label.set_fontweight("bold" if entry.contender in OURS else "normal")
    axes.set_ylim(max(len(entries), 3) - 0.4, -0.6)
    axes.set_xlim(0, longest * 1.55)
    axes.set_title(result.workload.name, fontsize=9.5, fontweight="bold", loc="left", color=INK, pad=14)
    axes.text(0, 1.02, f"{result.workload.about} ({result.bound}-bound)", transform=axes.transAxes, fontsize=7,
              color=SOFT)  # fmt: skip
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _leads(axes: Any, report: Report) -> None:
    """Times the speed of the dense mask, logarithmic around 1x."""
    rows = leads(report)
    for at, (result, ours, times, _) in enumerate(rows):
        axes.barh(at, math.log(times), height=0.62, color=_colour(ours.contender))
        base = result.entry(BASELINE)
        mark = " *" if base is not None and base.status == "wrong" else ""
        axes.text(math.log(times), at, f" {times:.2f}x{mark} ", va="center", fontsize=8,
                  ha="left" if times >= 1 else "right")  # fmt: skip
    low, high = (math.log(end) for end in lead_scale(times for _, _, times, _ in rows))
    axes.axvline(0, color=SOFT, lw=1)
    axes.set_xlim(low - 0.12 * (high - low), high + 0.12 * (high - low))
    axes.set_yticks(range(len(rows)), [result.workload.name for result, *_ in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.set_title("our fastest, times the speed of a dense mask (log scale; * its answer is wrong)", fontsize=9.5,
                   loc="left", fontweight="bold")  # fmt: skip
    for side in axes.spines.values():
        side.set_visible(False)


def picture(report: Report) -> bytes:
    """PNG bytes."""
    pyplot = _pyplot()
    rows = -(-len(report.results) // COLUMNS)
    figure = pyplot.figure(figsize=(15, 1.2 + 0.27 * len(report.results) + 1.75 * rows), facecolor="white")
    top, body = figure.subfigures(2, 1, height_ratios=[1.0 + 0.27 * len(report.results), 1.75 * rows])
    top.subplots_adjust(left=0.14, right=0.97, bottom=0.04, top=0.68)
    _leads(top.subplots(), report)
    facts = ", ".join(
        value if name == "instructions" else f"{name} {value}"
        for name, value in report.machine.items()
        if name in ("torch", "cuda", "capability", "threads", "instructions")
    )
    top.text(0.02, 0.9, f"Attention on {report.title}", fontsize=16, fontweight="bold", color=INK)
    top.text(
        0.02, 0.82, f"{facts} · {report.dtype} matmul {report.ceiling_tflops:.3g} TFLOP/s, copy "
        f"{report.ceiling_gbps:.3g} GB/s · {report.command} · commit {report.commit} · {report.date}",
        fontsize=8.5, color=SOFT,
    )  # fmt: skip
    panels = body.subplots(rows, COLUMNS, squeeze=False)
    body.subplots_adjust(left=0.08, right=0.985, top=0.93, bottom=0.01, hspace=0.75, wspace=0.28)
    for axes, result in zip(panels.flat, report.results, strict=False):
        _bars(axes, result)
    for axes in list(panels.flat)[len(report.results) :]:
        axes.set_visible(False)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110)
    pyplot.close(figure)
    return sink.getvalue()
