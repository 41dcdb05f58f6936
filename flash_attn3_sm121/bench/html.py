"""The report: one HTML file, nothing fetched, readable on a phone, in the dark and on paper."""

from __future__ import annotations

from html import escape

from flash_attn3_sm121.bench import plots
from flash_attn3_sm121.bench.result import Entry, Report, WorkloadResult
from flash_attn3_sm121.bench.style import CSS, SCRIPT, colour_rules
from flash_attn3_sm121.bench.text import COLUMNS, in_order, markdown, row


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
    found = sorted(plots.leads(report), key=lambda lead: -lead[2])
    tiles = []
    for result, ours, times, memory in found[:3]:
        if times < 1.05:
            break
        less = f", {memory:.3g}x less memory" if memory and memory > 1.05 else ""
        wrong = result.entry("dense-mask")
        note = " (whose answer is wrong)" if wrong and wrong.status == "wrong" else ""
        tiles.append(
            f'<div class="card"><div class="big good">{times:.1f}x</div><div>{escape(result.workload.about)}</div>'
            f'<div class="soft small">our {escape(ours.contender)} against a dense mask{note}{less}</div></div>'
        )
    ours_all = [e for r in report.results for e in r.entries if e.contender in ("native", "sdpa", "flex")]
    right = sum(e.status == "ok" for e in ours_all)
    judged = right + sum(e.status in ("wrong", "failed") for e in ours_all)
    tone = "good" if right == judged else "bad"
    tiles.append(
        f'<div class="card"><div class="big {tone}">{right} of {judged}</div><div>answers of ours are right</div>'
        '<div class="soft small">held against fp32 mathematics before being timed</div></div>'
    )
    return f'<section class="tiles">{"".join(tiles)}</section>'


def _panel(result: WorkloadResult) -> str:
    work = result.workload
    shape = f"{work.heads}/{work.heads_kv} heads, D={work.head_dim}, {work.dtype}"
    body = plots.time_chart(result, in_order(result)) or '<p class="soft">Nobody serves it here.</p>'
    wrongs = "".join(
        f'<p class="small bad">{escape(entry.contender)}: {escape(entry.why)}</p>'
        for entry in result.entries
        if entry.status in ("wrong", "failed")
    )
    return (
        f'<section class="card" id="{escape(work.name)}"><div class="cardhead"><h3>{escape(work.name)}</h3>'
        f'<span class="tag">{result.bound}-bound</span></div>'
        f'<p class="soft small">{escape(work.about)}: {escape(shape)}</p>{body}{wrongs}</section>'
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
    key = f'<td class="c-{entry.contender}"><span class="key"></span>{escape(shown[1])}</td>'
    rest = "".join(f"<td>{escape(cell)}</td>" for cell in shown[2:-1])
    last = f'<td class="wide{" bad" if entry.status == "wrong" else ""}">{escape(shown[-1])}</td>'
    return f"<tr{classes}><td>{escape(shown[0])}</td>{key}{rest}{last}</tr>"


def _absent(report: Report) -> str:
    """Refusals, one line a contender and reason, with the workloads they cover."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for result in report.results:
        for entry in result.entries:
            if entry.median_ms is None:
                reasons.setdefault((entry.contender, entry.status, entry.why), []).append(result.workload.name)
    if not reasons:
        return ""
    lines = "".join(
        f'<tr><td class="c-{who}"><span class="key"></span>{escape(who)}</td><td>{status}</td>'
        f'<td class="wide">{escape(why)}</td><td class="wide soft">{escape(", ".join(works))}</td></tr>'
        for (who, status, why), works in sorted(reasons.items())
    )
    return (
        '<details class="card"><summary>Who did not run, and why</summary><div class="scroll"><table><thead><tr>'
        f"<th>contender</th><th></th><th>why</th><th>workloads</th></tr></thead><tbody>{lines}</tbody></table></div>"
        "</details>"
    )


def page(report: Report) -> str:
    """The whole file."""
    timed = [name for name in _names(report) if any(_timed(result, name) for result in report.results)]
    panels = "".join(_panel(result) for result in report.results)
    title = f"Attention on {report.title}"
    notes = "".join(f"<p>{escape(note)}</p>" for note in report.notes)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{CSS}{colour_rules()}</style></head><body><main>
<header><div><h1>{escape(title)}</h1><div class="soft small"><code>{escape(report.command)}</code></div></div>
<button id="theme" type="button">Light / dark</button></header>
{_facts(report)}{notes}{_tiles(report)}
<h2>Our fastest against a dense mask</h2>
<p class="soft">Times the speed of SDPA with a (Tq, Tk) mask in the same rounds; to the right of the line is faster.
The scale is logarithmic.</p>
<div class="card">{plots.lead_chart(report)}</div>
<h2>Every workload</h2>
<p class="soft">Median time of a call with its quartiles, and peak memory beyond the inputs. Shorter is better; a bar
with a gap goes on beyond the plot.</p>
{plots.legend(timed)}<div class="grid">{panels}</div>
<h2>Against what the device can do</h2>
<p class="soft">Each dot is a contender on a workload; the line is this run's own matmul and copy. Work that a mask
makes needless counts as no work, so a dense mask sits low.</p>
<div class="card">{plots.legend(timed)}{plots.roofline_chart(report)}</div>
<h2>Figures</h2>
<details class="card"><summary>All of them</summary>{_table(report)}</details>
{_absent(report)}
<details class="card"><summary>As Markdown, for an issue</summary><p><button id="copy" type="button">Copy</button></p>
<pre id="markdown">{escape(markdown(report))}</pre></details>
</main><script>{SCRIPT}</script></body></html>
"""


def _names(report: Report) -> list[str]:
    names: list[str] = []
    for result in report.results:
        names += [entry.contender for entry in result.entries if entry.contender not in names]
    return names


def _timed(result: WorkloadResult, name: str) -> bool:
    entry = result.entry(name)
    return entry is not None and entry.median_ms is not None
