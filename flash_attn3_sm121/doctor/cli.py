"""`flash-attn3 doctor`: the machine, the findings, and the fixes at the end, where a terminal shows them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from flash_attn3_sm121.console import Block, Cell, Narrator, Styled, Table, Verbatim, show
from flash_attn3_sm121.doctor.collect import machine
from flash_attn3_sm121.doctor.diagnose import Finding, diagnose
from flash_attn3_sm121.doctor.facts import Call, Machine

EPILOG = """It works without torch, without a GPU and with a broken library.
Exit code 0: nothing is wrong. 1: there is at least one fault; each names the command that fixes it."""
MARKS = {"ok": Styled("ok", "green"), "note": Styled("note", "yellow"), "fault": Styled("FAULT", "bold red")}


def configure_doctor(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--json", action="store_true", help="facts and findings as JSON on stdout")


def do_doctor(args: argparse.Namespace) -> int:
    Narrator().note("looking at the driver, torch, libraries and clients ...")
    facts = machine()
    findings = diagnose(facts)
    if args.json:
        json.dump({"machine": asdict(facts), "findings": [asdict(f) for f in findings]}, sys.stdout, indent=1)
        print()
    else:
        show(report(facts, findings))
    return 1 if any(finding.level == "fault" for finding in findings) else 0


def _by_decision(calls: Sequence[Call]) -> dict[str, list[Call]]:
    """Calls grouped by the text of their decision, so that equal reasons are printed once."""
    groups: dict[str, list[Call]] = {}
    for call in calls:
        groups.setdefault(call.decision, []).append(call)
    return groups


def report(machine: Machine, findings: Sequence[Finding]) -> list[Block]:
    """The whole diagnosis. The commands that fix its faults are repeated at the end, to be copied."""
    blocks: list[Block] = [f"Python {machine.python} on {machine.cpu} ({machine.platform})"]
    blocks.append(Verbatim(f"  {machine.executable}"))
    blocks += [Verbatim(f"  {name}={value}") for name, value in machine.environment.items()]
    rows: list[tuple[Cell, Cell]] = []
    for finding in findings:
        rows.append((MARKS[finding.level], finding.title))
        rows += [("", Styled(line, "dim")) for line in finding.detail.splitlines()]
    blocks += ["", Table(rows=rows)]
    if machine.calls:
        blocks += ["", "Who would serve a typical call:"]
        for decision, calls in _by_decision(machine.calls).items():
            first, *rest = decision.splitlines()
            blocks.append(f"  {first.removeprefix('backend: ')}, on {calls[0].device}:")
            blocks += [f"    - {call.name}" for call in calls]
            blocks += [f"      {line.strip()}" for line in rest]
    faults = [finding for finding in findings if finding.level == "fault"]
    if not faults:
        return [*blocks, "", "Nothing is wrong."]
    blocks += [
        "",
        f"{len(faults)} fault{'s' if len(faults) > 1 else ''}. To fix {'them' if len(faults) > 1 else 'it'}:",
    ]
    for number, finding in enumerate(faults, start=1):
        blocks += [f"  {number}. {finding.title}", Verbatim(f"     {finding.fix}")]
    return blocks
