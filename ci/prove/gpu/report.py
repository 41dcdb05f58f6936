"""A run as JSON, Markdown and one HTML file. The files are rewritten after every stage."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from ci.prove.gpu.stage import Case, StageResult, Status
from flash_attn3_sm121.bench.style import CSS, SCRIPT

SCHEMA = 1
PROXY = "PROXY BUILD: kernels of the 99 KB family with another device's machine code. A test build, not for use."


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run: the stages, the wheel and the machine."""

    date: str
    commit: str
    command: str
    device: str
    machine: Mapping[str, Any]
    wheel: Mapping[str, Any]
    minutes: float
    planned: tuple[str, ...]
    results: tuple[StageResult, ...]

    @property
    def proxy(self) -> bool:
        return bool(self.wheel["proxy"])

    @property
    def good(self) -> bool:
        return len(self.results) == len(self.planned) and all(result.status.good for result in self.results)

    @property
    def verdict(self) -> str:
        bad = [f"{result.name} ({result.status})" for result in self.results if not result.status.good]
        missing = [name for name in self.planned if name not in {result.name for result in self.results}]
        if bad or missing:
            return "wrong: " + ", ".join([*bad, *(f"{name} (not reached)" for name in missing)])
        away = [result.name for result in self.results if result.status is Status.NOT_APPLICABLE]
        return "all right" + (f"; not applicable here: {', '.join(away)}" if away else "")


def _finite(value: Any) -> Any:
    """JSON has no infinity or NaN: they become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _case(case: Case) -> dict[str, Any]:
    """A case as JSON. Of a right one only the value closest to its limit is kept, since the file goes into an issue."""
    data = asdict(case)
    if case.status is Status.OK and case.findings:
        data["findings"] = [max(case.findings, key=lambda finding: finding["share"])]
    return data


def _stage(result: StageResult, seconds: float) -> dict[str, Any]:
    counts = {str(status): result.count(status) for status in Status if result.count(status)}
    refused = Counter(case.reason for case in result.cases if case.status is Status.REFUSED)
    data = {
        **asdict(result),
        "cases": [_case(case) for case in result.cases if case.status is not Status.REFUSED],
        "refused": dict(refused.most_common()),
    }
    data["share_of_time"] = round(result.seconds / seconds, 4) if seconds else 0.0
    return {**data, "summary": result.summary, "counts": counts}


def to_json(run: Run) -> str:
    seconds = sum(result.seconds for result in run.results)
    data = {
        "schema": SCHEMA, "tool": "python -m ci gpu-test", "date": run.date, "commit": run.commit,
        "command": run.command, "device": run.device, "proxy": run.proxy, "good": run.good, "verdict": run.verdict,
        "machine": run.machine, "wheel": run.wheel, "minutes": run.minutes,
        "stages": [_stage(result, seconds) for result in run.results],
    }  # fmt: skip
    return json.dumps(_finite(data), indent=1, allow_nan=False) + "\n"


def to_markdown(run: Run) -> str:
    """Markdown, for a terminal or an issue."""
    lines = [f"**{run.machine.get('name', run.device)}**: {run.verdict}", ""]
    lines += [f"> {PROXY}", ""] if run.proxy else []
    facts = ", ".join(f"{name} {value}" for name, value in run.machine.items() if value and name != "name")
    lines += [f"{facts}; wheel `{run.wheel['name']}` ({run.wheel['sha256'][:16]}), commit {run.commit}", ""]
    lines += ["| stage | result | seconds | |", "|---|---|---|---|"]
    lines += [f"| {r.name} | {r.status} | {r.seconds:.0f} | {r.summary.replace('|', '/')} |" for r in run.results]
    return "\n".join(lines) + "\n"


def _tone(status: Status) -> str:
    if status is Status.OK:
        return "good"
    return "soft" if status.good else "bad"


def _cases(cases: Sequence[Case]) -> str:
    rows = []
    for case in cases:
        worst = max(case.findings, key=lambda f: f["share"], default=None)
        measured = ""
        if worst is not None:
            measured = f"{worst['what']}: {worst['error']:.3g} of {worst['allowed']:.3g} allowed"
        rows.append(
            f'<tr><td class="wide">{escape(case.name)}</td><td>{case.dtype}</td>'
            f'<td class="{_tone(case.status)}">{case.status}</td><td class="wide">{escape(measured)}</td>'
            f'<td class="wide soft">{escape(case.reason)}</td></tr>'
        )
    head = "".join(f"<th>{name}</th>" for name in ("case", "dtype", "result", "worst value", ""))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _ratios(data: Mapping[str, Any]) -> str:
    rows = data.get("times_as_long_as_ours")
    if not rows:
        return ""
    names = sorted({name for row in rows.values() for name in row})
    head = "".join(f'<th class="num">{escape(name)}</th>' for name in names)
    body = "".join(
        f"<tr><td>{escape(work)}</td>"
        + "".join(f'<td class="num">{row[name]:.2f}</td>' if name in row else "<td></td>" for name in names)
        + "</tr>"
        for work, row in rows.items()
    )
    return (
        '<p class="soft small">Median times as multiples of ours: above 1 is slower than ours.</p>'
        f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _panel(result: StageResult) -> str:
    bad = [case for case in result.cases if not case.status.good]
    refused = [case for case in result.cases if case.status is Status.REFUSED]
    parts = [_cases(bad) if bad else "", _ratios(result.data)]
    if refused:
        parts.append(f"<details><summary>{len(refused)} refused, and why</summary>{_cases(refused)}</details>")
    if result.cases:
        parts.append(f"<details><summary>All {len(result.cases)} cases</summary>{_cases(result.cases)}</details>")
    if result.tail:
        shown = " open" if not result.status.good else ""
        parts.append(
            f"<details{shown}><summary>The end of its output</summary><pre>{escape(result.tail)}</pre></details>"
        )
    parts += [f'<p><a href="{escape(name)}">{escape(name)}</a></p>' for name in result.files]
    return (
        f'<section class="card" id="{result.name}"><div class="cardhead"><h3>{escape(result.title)}</h3>'
        f'<span class="{_tone(result.status)}"><b>{result.status}</b></span></div>'
        f'<p class="soft small">{escape(result.summary)} '
        f"({result.seconds:.0f} of {result.budget_s:.0f} s)</p>{''.join(parts)}</section>"
    )


def to_html(run: Run) -> str:
    title = f"flash_attn3_sm121 on {run.machine.get('name', run.device)}"
    facts = {**{k: v for k, v in run.machine.items() if k != "name"}, "wheel": run.wheel["name"],
             "sha256": run.wheel["sha256"][:16], "commit": run.commit, "date": run.date}  # fmt: skip
    items = "".join(f"<li><span>{escape(k)}</span> <b>{escape(str(v))}</b></li>" for k, v in facts.items() if v)
    proxy = f'<section class="card bad"><b>{escape(PROXY)}</b></section>' if run.proxy else ""
    tone = "good" if run.good else "bad"
    panels = "".join(_panel(result) for result in run.results)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{CSS}</style></head><body><main>
<header><div><h1>{escape(title)}</h1><div class="soft small"><code>{escape(run.command)}</code></div></div>
<button id="theme" type="button">Light / dark</button></header>
<ul class="facts">{items}</ul>{proxy}
<section class="card"><div class="{tone}"><b>{escape(run.verdict)}</b></div></section>
{panels}
<details class="card"><summary>As Markdown, for an issue</summary><p><button id="copy" type="button">Copy</button></p>
<pre id="markdown">{escape(to_markdown(run))}</pre></details>
</main><script>{SCRIPT}</script></body></html>
"""
