"""The plots, drawn as SVG by hand. Bars take their width in percent, so that text beside them keeps its size."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

from flash_attn3_sm121.bench.contenders import BASELINE
from flash_attn3_sm121.bench.result import Entry, Report, WorkloadResult
from flash_attn3_sm121.bench.session import NAIVE, time_text
from flash_attn3_sm121.bench.text import OURS, bytes_text


def _pct(value: float) -> str:
    return f"{max(0.0, min(100.0, value)):.2f}%"


def _whiskers(low: str, high: str) -> str:
    return (
        f'<line class="whisk" x1="{low}" x2="{high}" y1="8" y2="8"/>'
        f'<line class="whisk" x1="{low}" x2="{low}" y1="4" y2="12"/>'
        f'<line class="whisk" x1="{high}" x2="{high}" y1="4" y2="12"/>'
    )


def time_row(entry: Entry, longest: float) -> str:
    """Name, a bar as long as the median with its quartiles as whiskers, and the figures."""
    assert entry.median_ms is not None and entry.low_ms is not None and entry.high_ms is not None
    scale = 100 / longest
    low, high = _pct(entry.low_ms * scale), _pct(entry.high_ms * scale)
    classes = f"row c-{entry.contender}" + (" ours" if entry.contender in OURS else "")
    classes += " wrong" if entry.status == "wrong" else ""
    value = time_text(entry.median_ms)
    memory = bytes_text(entry.peak_bytes)
    wrong = entry.status == "wrong"
    said = '<span class="bad">wrong</span>' if wrong else value
    beside = f"({value})" if wrong else memory
    # A bar that is cut off says so with a gap near its end.
    cut = '<rect class="cut" x="94%" width="5" height="16"/>' if entry.median_ms > longest else ""
    return (
        f'<div class="{classes}"><span class="who">{escape(entry.contender)}</span>'
        f'<svg role="img" aria-label="{escape(entry.contender)}: {value}, peak memory {memory}">'
        f'<rect class="track" width="100%" height="16" rx="4"/>'
        f'<rect class="bar" width="{_pct(entry.median_ms * scale)}" height="16" rx="4"/>'
        f"{cut or _whiskers(low, high)}</svg>"
        f'<span class="val">{said}<span class="sep"> · </span><span class="mem soft">{beside}</span></span></div>'
    )


def time_chart(result: WorkloadResult, entries: Iterable[Entry]) -> str:
    """Bars to scale, but for the naive contender: it would squeeze all others, so its bar is cut off."""
    timed = [entry for entry in entries if entry.median_ms is not None]
    others = [entry for entry in timed if entry.contender not in NAIVE] or timed
    longest = max((entry.high_ms or 0.0 for entry in others), default=1.0) * 1.02
    return "".join(time_row(entry, longest) for entry in timed)


def best_of_ours(result: WorkloadResult) -> Entry | None:
    return next((entry for entry in result.ranked() if entry.contender in OURS), None)


def leads(report: Report) -> list[tuple[WorkloadResult, Entry, float, float | None]]:
    """(workload, our fastest, times faster than the dense mask, times less memory) wherever both were timed."""
    found = []
    for result in report.results:
        ours, base = best_of_ours(result), result.entry(BASELINE)
        times = None if ours is None else result.times_faster(ours.contender, BASELINE)
        if ours is None or base is None or times is None:
            continue
        memory = base.peak_bytes / ours.peak_bytes if base.peak_bytes and ours.peak_bytes else None
        found.append((result, ours, times, memory))
    return found


def lead_scale(leads: Iterable[float]) -> tuple[float, float]:
    """The ends of the leads' axis: 1x stands inside, and no half of the plot is empty for symmetry's sake."""
    every = tuple(leads)
    return min(0.8, *every) if every else 0.8, max(2.0, *every) if every else 2.0


def lead_chart(report: Report) -> str:
    """One bar a workload from 1x, on a logarithmic scale: to the right is faster than the dense mask."""
    rows = leads(report)
    if not rows:
        return '<p class="soft">No workload was timed for both.</p>'
    low, high = lead_scale(times for _, _, times, _ in rows)

    def place(times: float) -> float:
        return 100 * math.log(times / low) / math.log(high / low)

    one = place(1.0)
    out = []
    for result, ours, times, _ in rows:
        left, width = min(one, place(times)), abs(place(times) - one)
        wrong = (result.entry(BASELINE) or ours).status == "wrong"
        mark = " *" if wrong else ""
        tone = "good" if times >= 1.05 else "bad" if times < 0.95 else "soft"
        out.append(
            f'<div class="row lead c-{ours.contender}"><span class="who" title="{escape(result.workload.about)}">'
            f"{escape(result.workload.name)}</span>"
            f'<svg role="img" aria-label="{escape(result.workload.name)}: {times:.2f} times the speed">'
            f'<rect class="track" width="100%" height="16" rx="4"/>'
            f'<rect class="bar" x="{_pct(left)}" width="{_pct(max(width, 0.4))}" height="16" rx="3"/>'
            f'<line class="axis" x1="{_pct(one)}" x2="{_pct(one)}" y1="-3" y2="19"/></svg>'
            f'<span class="val {tone}">{times:.2f}x{mark}</span></div>'
        )
    if any((result.entry(BASELINE) or ours).status == "wrong" for result, ours, _, _ in rows):
        out.append('<p class="soft small">* the dense mask gives a wrong answer there; its time is shown anyway.</p>')
    return "".join(out)


def _ticks(low: float, high: float) -> list[float]:
    return [10.0**n for n in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]


def roofline_chart(report: Report) -> str:
    """Rate against FLOPs per byte, under this run's own two limits; both axes logarithmic."""
    width, height, left, bottom, top, right = 900, 420, 64, 44, 14, 20
    points = [
        (result, entry, result.flops / result.bytes, entry.tflops)
        for result in report.results
        for entry in result.ranked()
        if entry.tflops
    ]
    points.sort(key=lambda point: point[1].contender in OURS)  # ours on top
    if not points:
        return '<p class="soft">Nothing was timed.</p>'
    ridge = report.ceiling_tflops * 1e12 / (report.ceiling_gbps * 1e9)
    xs = [p[2] for p in points] + [ridge]
    x_low, x_high = min(xs) / 2, max(xs) * 2
    y_low, y_high = min(p[3] for p in points) / 2, report.ceiling_tflops * 2

    def x_at(x: float) -> float:
        return left + (width - left - right) * math.log(x / x_low) / math.log(x_high / x_low)

    def y_at(y: float) -> float:
        return height - bottom - (height - bottom - top) * math.log(y / y_low) / math.log(y_high / y_low)

    out = [f'<div class="scroll"><svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="roofline">']
    for x in _ticks(x_low, x_high):
        if x_low <= x <= x_high:
            out.append(
                f'<line class="grid-line" x1="{x_at(x):.1f}" x2="{x_at(x):.1f}" y1="{top}" y2="{height - bottom}"/>'
            )
            out.append(f'<text x="{x_at(x):.1f}" y="{height - bottom + 18}" text-anchor="middle">{x:g}</text>')
    for y in _ticks(y_low, y_high):
        if y_low <= y <= y_high:
            out.append(
                f'<line class="grid-line" x1="{left}" x2="{width - right}" y1="{y_at(y):.1f}" y2="{y_at(y):.1f}"/>'
            )
            out.append(f'<text x="{left - 8}" y="{y_at(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    slope_from = max(x_low, y_low * 1e12 / (report.ceiling_gbps * 1e9))
    out.append(
        f'<path class="roof" d="M{x_at(slope_from):.1f},{y_at(slope_from * report.ceiling_gbps * 1e-3):.1f} '
        f'L{x_at(ridge):.1f},{y_at(report.ceiling_tflops):.1f} L{width - right},{y_at(report.ceiling_tflops):.1f}"/>'
    )
    for result, entry, x, rate in points:
        label = f"{result.workload.name}, {entry.contender}: {rate:.3g} TFLOP/s at {x:.3g} FLOP/byte"
        radius = 6 if entry.contender in OURS else 4.5
        out.append(
            f'<circle class="dot c-{entry.contender}" cx="{x_at(x):.1f}" cy="{y_at(rate):.1f}" r="{radius}">'
            f"<title>{escape(label)}</title></circle>"
        )
    middle = (left + width - right) / 2
    out.append(f'<text x="{middle}" y="{height - 6}" text-anchor="middle">FLOP per byte that must move</text>')
    out.append(
        f'<text transform="translate(14 {height / 2}) rotate(-90)" text-anchor="middle">TFLOP/s</text></svg></div>'
    )
    return "".join(out)


def legend(names: Iterable[str]) -> str:
    items = "".join(
        f'<span class="c-{name}"><i></i>{f"<b>{name}</b> (ours)" if name in OURS else escape(name)}</span>'
        for name in names
    )
    return f'<div class="legend">{items}</div>'
