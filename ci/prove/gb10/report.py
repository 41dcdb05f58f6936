"""What executed cases say: a document for programs, and a table for people. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ci.prove.gb10 import mutants
from ci.verify import executed, kernels
from ci.verify.executed import ATTENTION, SCHEMA
from flash_attn3_sm121.console import Block, Table

# Why a helper's kernel need not be reached by calls of this profile.
REASONS = {
    "library": "empty on purpose: CUB reads the architecture from it and launches it never",
    "combine": "for a type, a head dim or a number of splits that this profile's calls do not have",
    "prepare": "for another size of the batch, of which the host code takes one",
}


def wrong(result: Mapping[str, Any]) -> list[str]:
    """What is wrong with a case, in words; empty where nothing is."""
    found = [result["error"]] if result["error"] else []
    found += [describe(finding) for finding in result["findings"] if not finding["note"]]
    errors = result["errors"]
    found += [f"{name} is off by {errors[name]:.3g}" for name, part in result["parts"].items() if not part <= 1]
    if result["second"] is False:
        found.append("results depend on memory that nobody wrote")
    return found


def describe(finding: Mapping[str, Any]) -> str:
    """A finding in a line."""

    def party(who: Mapping[str, Any]) -> str:
        lanes = f" lanes {who['lanes']:#x}" if who["lanes"] else ""
        return f"line {who['line']} ({who['text'].split()[0]}), block {who['block']} warp {who['warp']}{lanes}"

    other = f"; the other: {party(finding['other'])}" if finding["other"] else ""
    times = f" ({finding['count']} times)" if finding["count"] > 1 else ""
    return f"{finding['kind']} in {finding['space']} memory: {finding['what']}, {party(finding['who'])}{other}{times}"


def _row(kernel: str, counts: Sequence[int]) -> dict[str, Any]:
    variant = kernels.variant(kernel)
    return {
        "kernel": kernel,
        "kind": kernels.kind(kernel),
        "variant": str(variant) if variant else "",
        "cases": 0,
        "launches": 0,
        "largest": {},
        "parts": {},
        "wrong": 0,
        "notes": [],
        "instructions": len(counts),
        "executed": sum(count > 0 for count in counts),
    }


def _rows(results: Sequence[Mapping[str, Any]], counts: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        for kernel, launches in result["launched"].items():
            row = rows.setdefault(kernel, _row(kernel, counts.get(kernel, ())))
            row["cases"] += 1
            row["launches"] += launches
            row["wrong"] += bool(wrong(result))
            for name, error in result["errors"].items():
                row["largest"][name] = max(row["largest"].get(name, 0.0), error)
                row["parts"][name] = max(row["parts"].get(name, 0.0), result["parts"][name])
            for finding in result["findings"]:
                if finding["note"] and finding["kernel"] == kernel and finding["kind"] not in row["notes"]:
                    row["notes"].append(finding["kind"])
    return sorted(rows.values(), key=lambda row: (row["kind"], row["variant"], row["kernel"]))


def document(
    results: Sequence[Mapping[str, Any]],
    counts: Mapping[str, Sequence[int]],
    *,
    all_kernels: Mapping[str, str],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that a run showed.

    Args:
        all_kernels: the hash of every kernel's PTX, by mangled name.
        about: the profile, the sources, the compiler.
    """
    rows = [row | {"ptx": all_kernels[row["kernel"]]} for row in _rows(results, counts)]
    reached = {row["kernel"] for row in rows}
    unreached = [
        {
            "kernel": name,
            "ptx": all_kernels[name],
            "kind": kernels.kind(name),
            "reason": REASONS.get(kernels.kind(name), "no call reached it"),
        }
        for name in sorted({*all_kernels} - reached)
    ]
    failed = [{"case": result["case"], "wrong": wrong(result)} for result in results if wrong(result)]
    findings: dict[tuple[Any, ...], dict[str, Any]] = {}
    for result in results:
        for found in result["findings"]:
            other = found["other"]["line"] if found["other"] else None
            # Of what is harmless, one example of each kind is enough: the kernels' rows say where else it was seen.
            mine = (found["kind"],) if found["note"] else (found["kernel"], found["kind"], found["who"]["line"], other)
            kept = findings.setdefault(mine, {**found, "case": result["case"], "cases": 0, "count": 0})
            kept["cases"] += 1
            kept["count"] += found["count"]
    twice = [result["second"] for result in results if result["second"] is not None]
    places = {row["kernel"]: place for place, row in enumerate(rows)}
    return {
        "schema": SCHEMA,
        **about,
        "cases": len(results),
        "failed": failed,
        "kernels": rows,
        "launched": [sorted(places[kernel] for kernel in result["launched"]) for result in results],  # of each case
        "unreached": unreached,
        "findings": list(findings.values()),
        "second_poison": {"cases": len(twice), "equal": sum(twice)},
        "instructions": sum(result["instructions"] for result in results),
        "execution_s": round(sum(result["execution_s"] for result in results), 1),
    }


def summary(made: Mapping[str, Any]) -> dict[str, Any]:
    """Shorten the document to what a wheel carries."""
    said = [describe(found) for found in made["findings"] if not found["note"]]
    return executed.summary(made, findings=said)


def good(made: Mapping[str, Any]) -> bool:
    """No case is wrong, and every attention kernel was executed."""
    return not made["failed"] and not any(missing["kind"] in (*ATTENTION, "other") for missing in made["unreached"])


def to_json(made: Mapping[str, Any]) -> str:
    return json.dumps(made, indent=1, sort_keys=True) + "\n"


HEAD = ("cases", "launches", "coverage", "out", "LSE", "gradients", "of their limits", "wrong", "kernel")


def to_blocks(made: Mapping[str, Any]) -> list[Block]:
    """For people. Coverage is of a kernel's PTX instructions; errors are the largest distance to the formula,
    and the largest as a part of what rounding may cause."""
    rows = []
    for row in made["kernels"]:
        largest = row["largest"]
        gradients = max((largest[name] for name in ("dq", "dk", "dv") if name in largest), default=None)
        errors = (
            f"{value:.1e}" if value is not None else "" for value in (largest.get("out"), largest.get("lse"), gradients)
        )
        coverage = f"{100 * row['executed'] // max(1, row['instructions'])} %"
        name = f"{row['kind']} {row['variant'] or row['kernel'][:60]}"
        share = f"{100 * max(row['parts'].values(), default=0.0):.0f} %"
        rows.append((str(row["cases"]), str(row["launches"]), coverage, *errors, share, str(row["wrong"] or ""), name))
    lines = []
    for kind in sorted({missing["kind"] for missing in made["unreached"]}):
        mine = [missing for missing in made["unreached"] if missing["kind"] == kind]
        lines.append(f"not reached: {len(mine)} {kind}: {mine[0]['reason']}")
    second = made["second_poison"]
    lines.append(
        f"{second['cases']} cases read shared memory that nobody wrote (rows that are masked later); with other "
        f"contents {second['equal']} of them gave the same results to the bit"
    )
    for failure in made["failed"]:
        lines += [f"WRONG: {failure['case']}", *(f"    {text}" for text in failure["wrong"])]
    attention = sum(row["kind"] in ATTENTION for row in made["kernels"])
    others = len(made["kernels"]) - attention
    lines.append(
        f"{attention} attention kernels and {others} others executed in {made['cases']} cases, "
        f"{made['instructions'] / 1e6:.0f} million instructions of warps; {len(made['failed'])} cases wrong"
    )
    table = Table(head=HEAD, rows=rows, right=frozenset(range(8)))
    return [table, "", *lines, *(mutants.to_blocks(made["mutants"]) if "mutants" in made else [])]
