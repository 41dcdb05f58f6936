"""The report as one HTML file that loads nothing else and can be read on a phone, in the dark and on paper."""

from __future__ import annotations

from html import escape

from flash_attn3_sm121.bench import plots
from flash_attn3_sm121.bench.result import Entry, Report
from flash_attn3_sm121.bench.style import CSS, SCRIPT, colour_rules
from flash_attn3_sm121.bench.text import COLUMNS, OURS, in_order, markdown, row
from flash_attn3_sm121.errors import MissingPackageError


def _facts(report: Report) -> str:
    facts = {
        **{name: value for name, value in report.machine.items() if name != "device"},
        f"{report.dtype} matmul here": f"{report.ceiling_tflops:.3g} TFLOP/s",
        "copy here": f"{report.ceiling_gbps:.3g} GB/s",
        "commit": report.commit,
        "date": report.date,
        "took": f"{report.seconds:.0f} s",
    }
    items = "".join(f"<li><span>{escape(name)}</span> <b>{escape(value)}</b></li>" for name, value in facts.items())
    return f'<ul class="facts">{items}</ul>'


def _tiles(report: Report) -> str:
    """The three largest leads, and how many of our answers were right."""
    tiles = []
    for result, ours, times, memory in sorted(plots.leads(report), key=lambda lead: -lead[2])[:3]:
        if times < 1.05:
            break
        less = f", {memory:.3g}x less memory" if memory and memory > 1.05 else ""
        wrong = result.entry("dense-mask")
        note = " (whose answer is wrong)" if wrong and wrong.status == "wrong" else ""
        tiles.append(
            f'<div class="card"><div class="big good">{times:.1f}x</div><div>{escape(result.workload.about)}</div>'
            f'<div class="soft small">our {escape(ours.contender)} against a dense mask{note}{less}</div></div>'
        )
    ours_all = [e for r in report.results for e in r.entries if e.contender in OURS]
    right = sum(e.status == "ok" for e in ours_all)
    judged = right + sum(e.status in ("wrong", "failed") for e in ours_all)
    tone = "good" if right == judged else "bad"
    tiles.append(
        f'<div class="card"><div class="big {tone}">{right} of {judged}</div><div>answers of ours are right</div>'
        '<div class="soft small">held against fp32 mathematics before being timed</div></div>'
    )
    return f'<section class="tiles">{"".join(tiles)}</section>'


def _plots(report: Report) -> str:
    """The plots, or a sentence that says how to get them."""
    try:
        return f'<div class="card scroll">{plots.svg(report)}</div>'
    except MissingPackageError as error:
        return (
            f'<p class="card soft">No plots here: {escape(error.message)}. <code>{escape(error.hint or "")}</code></p>'
        )


def _table(report: Report) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    lines = []
    for result in report.results:
        first = True
        for entry in in_order(result):
            if entry.median_ms is None:
                continue
            lines.append(_line(row(result, entry), entry, first=first))
            first = False
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _line(cells: tuple[str, ...], entry: Entry, *, first: bool) -> str:
    shown = [cells[0] if first else "", *cells[1:]]
    classes = ' class="first"' if first else ""
    key = f'<td><span class="key" style="background:var(--c-{entry.contender})"></span>{escape(shown[1])}</td>'
    rest = "".join(f"<td>{escape(cell)}</td>" for cell in shown[2:-1])
    last = f'<td class="wide{" bad" if entry.status == "wrong" else ""}">{escape(shown[-1])}</td>'
    return f"<tr{classes}><td>{escape(shown[0])}</td>{key}{rest}{last}</tr>"


def _absent(report: Report) -> str:
    """Who was not timed, a line for each contender and reason, with the workloads it covers."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for result in report.results:
        for entry in result.entries:
            if entry.median_ms is None:
                reasons.setdefault((entry.contender, entry.status, entry.why), []).append(result.workload.name)
    if not reasons:
        return ""
    lines = "".join(
        f'<tr><td><span class="key" style="background:var(--c-{who})"></span>{escape(who)}</td><td>{status}</td>'
        f'<td class="wide">{escape(why)}</td><td class="wide soft">{escape(", ".join(works))}</td></tr>'
        for (who, status, why), works in sorted(reasons.items())
    )
    return (
        '<details class="card"><summary>Not timed, and why</summary><div class="scroll"><table><thead><tr>'
        f"<th>contender</th><th></th><th>why</th><th>workloads</th></tr></thead><tbody>{lines}</tbody></table></div>"
        "</details>"
    )


def page(report: Report) -> str:
    """The whole file. Without matplotlib it has its tables, and says which extra brings the plots."""
    title = f"Attention on {report.title}"
    notes = "".join(f"<p>{escape(note)}</p>" for note in report.notes)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{CSS}{colour_rules()}</style></head><body><main>
<header><div><h1>{escape(title)}</h1><div class="soft small"><code>{escape(report.command)}</code></div></div>
<button id="theme" type="button">Light / dark</button></header>
{_facts(report)}{notes}{_tiles(report)}
<h2>Plots</h2>
<p class="soft">Median time of a call with its quartiles, and peak memory beyond the inputs. Shorter is better; a bar
with a gap goes on beyond the plot. Work that a mask makes needless counts as no work, so a dense mask sits low under
the roofline.</p>
{_plots(report)}
<h2>Figures</h2>
<details class="card" open><summary>All of them</summary>{_table(report)}</details>
{_absent(report)}
<details class="card"><summary>As Markdown, for an issue</summary><p><button id="copy" type="button">Copy</button></p>
<pre id="markdown">{escape(markdown(report))}</pre></details>
</main><script>{SCRIPT}</script></body></html>
"""
