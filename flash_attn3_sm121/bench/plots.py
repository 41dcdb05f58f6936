"""The plots of a report, drawn once with matplotlib (the extra `bench`): as a PNG, and as SVG for the HTML report."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from html import escape
from typing import Any

from flash_attn3_sm121.bench.contenders import BASELINE
from flash_attn3_sm121.bench.result import Entry, Report, WorkloadResult
from flash_attn3_sm121.bench.session import NAIVE, time_text
from flash_attn3_sm121.bench.style import COLOURS, OTHER
from flash_attn3_sm121.bench.text import OURS, in_order
from flash_attn3_sm121.console import format_bytes
from flash_attn3_sm121.errors import MissingPackageError, pip_command

WIDTH = 10.8  # inches; the HTML page is as wide at 100 pixels an inch
COLUMNS = 2
# Each colour but the contenders', and the variable of the page's style sheet that takes its place in the SVG.
INK, SOFT, TRACK, CARD, BAD = "#1b2028", "#5b6573", "#eef1f5", "#fefefe", "#c0362c"
VARIABLES = {INK: "--ink", SOFT: "--soft", TRACK: "--track", CARD: "--card", BAD: "--bad"}
SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "flash-attn3 bench", "font.family": "sans-serif"}

Lead = tuple[WorkloadResult, Entry, float, float | None]


def leads(report: Report) -> list[Lead]:
    """(workload, our fastest, times faster than the dense mask, times less memory) wherever both were timed."""
    rows = []
    for result in report.results:
        ours = next((entry for entry in result.ranked() if entry.contender in OURS), None)
        base = result.entry(BASELINE)
        times = None if ours is None else result.times_faster(ours.contender, BASELINE)
        if ours is None or base is None or times is None:
            continue
        memory = base.peak_bytes / ours.peak_bytes if base.peak_bytes and ours.peak_bytes else None
        rows.append((result, ours, times, memory))
    return rows


def lead_scale(times: Iterable[float]) -> tuple[float, float]:
    """The ends of the leads' axis: 1x lies inside, and an axis with leads on one side only is not symmetric."""
    every = tuple(times)
    return min(0.8, *every) if every else 0.8, max(2.0, *every) if every else 2.0


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        hint = f"{pip_command()} install 'flash_attn3_sm121[bench]'"
        raise MissingPackageError(f"the plots need matplotlib: {error}", hint=hint) from error
    return matplotlib


def png(report: Report) -> bytes:
    """The plots under a heading, as a PNG.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    with _matplotlib().rc_context(SETTINGS):
        sink = io.BytesIO()
        _figure(report, heading=True).savefig(sink, format="png", dpi=120, facecolor="white")
    return sink.getvalue()


def svg(report: Report) -> str:
    """The plots as one `<svg>` element, in the colours of the page that it stands in.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    with _matplotlib().rc_context(SETTINGS):
        sink = io.StringIO()
        _figure(report, heading=False).savefig(sink, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", sink.getvalue(), flags=re.DOTALL)
    text = text[text.index("<svg") :]
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    for name, (light, _) in COLOURS.items():
        text = text.replace(light, f"var(--c-{name})")
    label = escape(f"Plots: attention on {report.title}", quote=True)
    return re.sub(r'width="[^"]*pt" height="[^"]*pt"|height="[^"]*pt" width="[^"]*pt"', "", text, count=1).replace(
        "<svg", f'<svg class="plot" role="img" aria-label="{label}"', 1
    )


def _figure(report: Report, *, heading: bool) -> Any:
    """Leads on top, a panel a workload below, the roofline last."""
    from matplotlib.figure import Figure

    results = [result for result in report.results if _timed(result)]
    counts = [len(_timed(result)) for result in results]
    bars = [max(counts[at : at + COLUMNS]) for at in range(0, len(counts), COLUMNS)]  # in each row of panels
    rows = [0.75 + 0.24 * count for count in bars]
    heights = [0.7 if heading else 0.01, 0.6 + 0.26 * len(leads(report)), max(0.01, sum(rows)), 4.6]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    head, top, middle, bottom = figure.subfigures(4, 1, height_ratios=heights)
    if heading:
        _heading(head, report)
    _leads(top.subplots(), report)
    if results:
        panels = middle.subplots(len(rows), COLUMNS, squeeze=False, height_ratios=rows)
        for at, (axes, result) in enumerate(zip(panels.flat, results, strict=False)):
            _workload(axes, result)
            axes.set_ylim(bars[at // COLUMNS] - 0.4, -0.6)
        for axes in list(panels.flat)[len(results) :]:
            axes.set_visible(False)
    _roofline(bottom.subplots(), report)
    return figure


def _timed(result: WorkloadResult) -> list[Entry]:
    return [entry for entry in in_order(result) if entry.median_ms is not None]


def _colour(name: str) -> str:
    return COLOURS.get(name, OTHER)[0]


def _bare(axes: Any, title: str) -> None:
    """No frame, no ticks, a title on the left."""
    axes.set_title(title, fontsize=10, fontweight="bold", loc="left", color=INK)
    axes.tick_params(length=0, labelcolor=INK, labelsize=8)
    axes.set_facecolor("none")
    for side in axes.spines.values():
        side.set_visible(False)


def _heading(figure: Any, report: Report) -> None:
    shown = ("torch", "cuda", "capability", "threads", "instructions")
    facts = ", ".join(f"{name} {value}" for name, value in report.machine.items() if name in shown)
    ceiling = f"{report.dtype} matmul {report.ceiling_tflops:.3g} TFLOP/s, copy {report.ceiling_gbps:.3g} GB/s"
    figure.text(0.01, 0.6, f"Attention on {report.title}", fontsize=15, fontweight="bold", color=INK)
    figure.text(0.01, 0.32, f"{facts}; {ceiling}", fontsize=8, color=SOFT)
    figure.text(0.01, 0.08, f"{report.command}; commit {report.commit}, {report.date}", fontsize=8, color=SOFT)


def _leads(axes: Any, report: Report) -> None:
    """Our fastest against the dense mask, a bar a workload from 1x, on a logarithmic axis."""
    rows = leads(report)
    _bare(axes, "Our fastest, times the speed of a dense mask (logarithmic; * the mask's answer is wrong)")
    low, high = lead_scale(times for _, _, times, _ in rows)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.15, high * 1.25)
    axes.xaxis.set_visible(False)
    axes.xaxis.set_minor_locator(_matplotlib().ticker.NullLocator())
    axes.axvline(1, color=SOFT, lw=1)
    for at, (result, ours, times, _) in enumerate(rows):
        axes.barh(at, times - 1, left=1, height=0.62, color=_colour(ours.contender))
        base = result.entry(BASELINE)
        mark = " *" if base is not None and base.status == "wrong" else ""
        side, gap = ("left", 4) if times >= 1 else ("right", -4)
        axes.annotate(
            f"{times:.2f}x{mark}", (times, at), (gap, 0), textcoords="offset points", va="center", ha=side, fontsize=8,
            color=INK,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [result.workload.name for result, *_ in rows])
    axes.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    if not rows:
        axes.text(1, 0, " no workload was timed for both", fontsize=8, color=SOFT)


def _workload(axes: Any, result: WorkloadResult) -> None:
    """Medians with their quartiles, and peak memory. The naive contender's bar may leave the plot."""
    entries = _timed(result)
    others = [entry for entry in entries if entry.contender not in NAIVE] or entries
    longest = max(entry.high_ms or 0.0 for entry in others)
    _bare(axes, result.workload.name)
    axes.set_title(f"{result.bound}-bound", fontsize=8, loc="right", color=SOFT)
    for at, entry in enumerate(entries):
        _bar(axes, at, entry, longest)
    axes.set_yticks(range(len(entries)), [entry.contender for entry in entries])
    for label, entry in zip(axes.get_yticklabels(), entries, strict=True):
        label.set_fontweight("bold" if entry.contender in OURS else "normal")
    axes.set_xlim(0, longest * 1.6)
    axes.set_xticks([])


def _bar(axes: Any, at: int, entry: Entry, longest: float) -> None:
    assert entry.median_ms is not None and entry.low_ms is not None and entry.high_ms is not None
    wrong, colour = entry.status == "wrong", _colour(entry.contender)
    axes.barh(at, longest, height=0.62, color=TRACK, zorder=0)
    axes.barh(
        at,
        min(entry.median_ms, longest),
        height=0.62,
        color="none" if wrong else colour,
        edgecolor=colour,
        linestyle="--" if wrong else "-",
        zorder=1,
    )
    if entry.median_ms <= longest:
        axes.plot([entry.low_ms, min(entry.high_ms, longest)], [at, at], color=INK, lw=1, zorder=2)
    else:  # a gap near its end says that the bar goes on
        axes.barh(at, longest * 0.015, left=longest * 0.94, height=0.7, color=CARD, zorder=2)
    value = time_text(entry.median_ms)
    words = f"wrong ({value})" if wrong else f"{value}, {format_bytes(entry.peak_bytes)}"
    axes.text(longest * 1.03, at, words, va="center", fontsize=8, color=BAD if wrong else INK)


def _roofline(axes: Any, report: Report) -> None:
    """Rate against FLOP per byte, under the run's own two limits."""
    _bare(axes, "Against what the device can do: the line is this run's own matmul and copy")
    points = [
        (result.flops / result.bytes, entry.tflops, entry.contender)
        for result in report.results
        for entry in result.ranked()
        if entry.tflops
    ]
    if not points:
        axes.text(0.5, 0.5, "nothing was timed", transform=axes.transAxes, ha="center", fontsize=8, color=SOFT)
        axes.set_axis_off()
        return
    ridge = report.ceiling_tflops * 1e3 / report.ceiling_gbps
    low = min(ridge, *(x for x, _, _ in points)) / 2
    high = max(ridge, *(x for x, _, _ in points)) * 2
    axes.loglog([low, ridge, high], [low * report.ceiling_gbps * 1e-3, *[report.ceiling_tflops] * 2], color=INK, lw=1.5)
    for name in dict.fromkeys(name for _, _, name in points):
        mine = [(x, y) for x, y, contender in points if contender == name]
        ours = name in OURS
        axes.scatter(
            *zip(*mine, strict=True), s=42 if ours else 24, color=_colour(name), edgecolors=CARD, linewidths=0.8,
            zorder=3 if ours else 2, label=f"{name} (ours)" if ours else name,
        )  # fmt: skip
    axes.set_ylim(min(y for _, y, _ in points) / 2, report.ceiling_tflops * 2)
    axes.set_xlabel("FLOP per byte that must move", fontsize=8, color=SOFT)
    axes.set_ylabel("TFLOP/s", fontsize=8, color=SOFT)
    axes.grid(color=TRACK, lw=0.8)
    axes.tick_params(which="both", length=0, labelcolor=SOFT)
    legend = axes.legend(loc="lower right", fontsize=8, ncols=2, labelcolor=INK)
    legend.get_frame().set(facecolor=CARD, edgecolor=TRACK)
