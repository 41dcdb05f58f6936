"""A diagnosis as text: what the machine is, what was found, and last, where it is read first, what mends the faults."""

from __future__ import annotations

from collections.abc import Sequence

from flash_attn3_sm121.doctor.judge import Finding
from flash_attn3_sm121.doctor.machine import Call, Machine

MARKS = {"ok": "ok   ", "note": "note ", "fault": "FAULT"}
COLOURS = {"ok": "\033[32m", "note": "\033[33m", "fault": "\033[31;1m"}
PLAIN = "\033[0m"


def _mark(level: str, *, colour: bool) -> str:
    return f"{COLOURS[level]}{MARKS[level]}{PLAIN}" if colour else MARKS[level]


def _by_decision(calls: Sequence[Call]) -> dict[str, list[Call]]:
    """Calls that got the same decision for the same reasons stand together, the reasons once."""
    groups: dict[str, list[Call]] = {}
    for call in calls:
        groups.setdefault(call.decision, []).append(call)
    return groups


def render(machine: Machine, findings: Sequence[Finding], *, colour: bool = False) -> str:
    """The whole page. The mends stand once more at the end, numbered, ready to be copied."""
    lines = [f"Python {machine.python} on {machine.cpu} ({machine.platform})", f"  {machine.executable}"]
    lines += [f"  {name}={value}" for name, value in machine.environment.items()]
    lines.append("")
    for finding in findings:
        lines.append(f"{_mark(finding.level, colour=colour)} {finding.title}")
        if finding.detail:
            lines += [f"        {line}" for line in finding.detail.splitlines()]
    if machine.calls:
        lines += ["", "Who would serve a typical call:"]
        for decision, calls in _by_decision(machine.calls).items():
            first, *rest = decision.splitlines()
            lines.append(f"  {first.removeprefix('backend: ')}, on {calls[0].device}:")
            lines += [f"    - {call.name}" for call in calls]
            lines += [f"      {line.strip()}" for line in rest]
    mends = [finding for finding in findings if finding.level == "fault"]
    lines.append("")
    if not mends:
        lines.append("Nothing is wrong.")
    else:
        lines.append(
            f"{len(mends)} fault{'s' if len(mends) > 1 else ''}. What mends {'them' if len(mends) > 1 else 'it'}:"
        )
        for number, finding in enumerate(mends, start=1):
            lines.append(f"  {number}. {finding.title}")
            lines.append(f"     {finding.mend}")
    return "\n".join(lines) + "\n"
