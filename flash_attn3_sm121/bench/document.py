"""The figures in documents, written from docs/results so that they cannot drift apart.

`python -m flash_attn3_sm121.bench.document --write docs/performance.md docs/gb10.md README.md`; a test checks that
nothing would change.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flash_attn3_sm121.bench import counts, splits
from flash_attn3_sm121.bench.first_use import RUNS, first_use_rows
from flash_attn3_sm121.bench.overhead import Cost, overhead_rows
from flash_attn3_sm121.bench.result import Report
from flash_attn3_sm121.bench.roofline import roofline
from flash_attn3_sm121.bench.text import COLUMNS, head_lines, in_order, markdown_table, row
from flash_attn3_sm121.console import Table, plain
from flash_attn3_sm121.errors import UsageError

QUICK, FULL, OVERHEAD, HOPPER = "cpu-quick.json", "cpu.json", "overhead-cpu.json", "h200.json"
FIRST_USE = "first-use-cpu.json"
COUNT_BEFORE = "fallback-count-before.json"


def _report(report: Report, command: str) -> str:
    """A report's table without the naive contender, which is slower than all others by an order of magnitude."""
    rows: list[tuple[str, ...]] = [
        tuple(name for name in COLUMNS if name not in ("spread", "of ceiling", "first call"))
    ]
    for result in report.results:
        for place, entry in enumerate(in_order(result)):
            if entry.median_ms is None or entry.contender == "torch-math":
                continue
            name, who, median, _, memory, rate, _, _, lead = row(result, entry)
            rows.append((name if place == 0 else "", who, median, memory, rate, lead))
    head = "  \n".join([*head_lines(report), *(f"({note})" for note in report.notes)])
    return f"`{command}`:\n\n{head}\n\n{markdown_table(rows)}"


def results_section(folder: Path) -> str:
    quick, full = Report.read(folder / QUICK), Report.read(folder / FULL)
    return (
        f"{_report(quick, quick.command)}\n"
        f"The larger shapes, with more rounds ({full.date}, commit {full.commit}):\n\n{_report(full, full.command)}"
    )


def hopper_section(folder: Path) -> str:
    report = Report.read(folder / HOPPER)
    return _report(report, report.command)


def _stamped(path: Path) -> tuple[dict[str, Any], str]:
    """What `stamped` wrote, and a line that says where and when it was measured."""
    data = json.loads(path.read_text(encoding="utf-8"))
    machine = data["machine"]
    return data, f"{machine['device']}, torch {machine['torch']}, {data['date']}, commit {data['commit']}"


def first_use_section(folder: Path) -> str:
    data, who = _stamped(folder / FIRST_USE)
    return f"{who}; the least over {RUNS} new processes:\n\n{markdown_table(first_use_rows(data['steps']))}"


def overhead_section(folder: Path) -> str:
    data, who = _stamped(folder / OVERHEAD)
    costs = [Cost(**cost) for cost in data["costs"]]
    return f"{who}; the least over 60 rounds of 200 calls:\n\n{markdown_table(overhead_rows(costs))}"


def roofline_section(folder: Path) -> str:
    return f"```\n{plain(roofline('gb10'))}```\n"


def count_section(folder: Path) -> str:
    """The fallback's launches, bytes and waits, before torch's FlashAttention served it and now, and a dense mask's."""
    before = json.loads((folder / COUNT_BEFORE).read_text(encoding="utf-8"))
    found = {(name, who): cells for name, who, *cells in counts.rows()}
    earlier = {name: cells for name, who, *cells in before["rows"] if who == "fallback"}
    lines: list[tuple[str, ...]] = [
        ("workload", *(f"{what}: before, now, dense mask" for what in ("launches", "bytes, of the least", "waits")))
    ]
    for name in dict.fromkeys(name for name, _ in found):
        now = found[name, "fallback"]
        old, dense = earlier.get(name, ["-"] * len(now)), found.get((name, "dense-mask"), ["-"] * len(now))
        columns = (f"{old[i]}, {now[i]}, {dense[i]}" for i in (0, 3, 4))
        lines.append((name, *columns))
    return f"`flash-attn3 bench --count`; before: commit {before['commit']}:\n\n{markdown_table(lines)}"


def splits_section(folder: Path) -> str:
    return f"```\n{plain(splits.table('gb10'))}```\n"


# The workloads of the quick run that README.md shows, each with the time of our fallback.
SHOWN = (
    *("train-causal-d128", "train-window", "train-window-fwdbwd", "prefill", "chunked-prefill", "decode-uniform"),
    *("decode-ragged", "varlen-packing"),
)


def quick_section(folder: Path) -> str:
    """The quick run's table without the other contenders and without half of the columns."""
    report = Report.read(folder / QUICK)
    lines: list[tuple[str, ...]] = [COLUMNS]
    for result in report.results:
        entry = result.entry("sdpa")
        if result.workload.name in SHOWN and entry is not None:
            lines.append(row(result, entry))
    kept = [COLUMNS.index(name) for name in ("workload", "contender", "median", "peak memory", "against dense-mask")]
    body = Table(rows=[[cells[i] for i in kept] for cells in lines])
    head = f"$ {report.command}    # {report.title}, {report.date}, {report.seconds:.0f} s; our lines only"
    return plain(["```console", head, body, "```"])


Sections = dict[str, Callable[[Path], str]]
PAGES: dict[str, tuple[str, Sections]] = {  # a page: where its results lie, and its sections
    "performance.md": (
        "results",
        {
            "results": results_section,
            "hopper": hopper_section,
            "count": count_section,
            "overhead": overhead_section,
            "first-use": first_use_section,
        },
    ),
    "gb10.md": ("results", {"roofline": roofline_section, "splits": splits_section}),
    "README.md": ("docs/results", {"quick": quick_section}),
}


def filled(text: str, folder: Path, sections: Sections) -> str:
    """The document with every generated section replaced.

    Raises:
        UsageError: a section's markers are not in the document once each.
    """
    for name, make in sections.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise UsageError(f"expected the markers {begin} and {end} once each")
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{make(folder)}{end}{rest.split(end)[1]}"
    return text


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flash_attn3_sm121.bench.document", description=__doc__)
    parser.add_argument("--write", type=Path, required=True, nargs="+", metavar="docs/performance.md")
    for page in parser.parse_args(argv).write:
        if page.name not in PAGES:
            raise UsageError(f"{page}: expected one of {', '.join(PAGES)}")
        folder, sections = PAGES[page.name]
        text = page.read_text(encoding="utf-8")
        made = filled(text, page.parent / folder, sections)
        if made != text:
            page.write_text(made, encoding="utf-8")
        print(f"{page}: {'written' if made != text else 'unchanged'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
