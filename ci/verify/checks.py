"""The result of a rule: what was looked at, and what was found against what was expected."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Check:
    """The result of one rule about one subject (a library, or the wheel)."""

    rule: str
    ok: bool
    found: str
    expected: str
    subject: str = ""

    def line(self) -> str:
        verdict = "ok  " if self.ok else "FAIL"
        tail = "" if self.ok else f" (expected {self.expected})"
        return f"{verdict} {self.subject}: {self.rule}: {self.found}{tail}"


def about(subject: str, checks: Iterable[Check]) -> tuple[Check, ...]:
    """Checks of rules that were asked about this subject."""
    return tuple(replace(check, subject=subject) for check in checks)


def same(rule: str, *, found: Iterable[str], expected: Iterable[str]) -> Check:
    """Two sets of names must be equal."""
    left, right = sorted(found), sorted(expected)
    return Check(rule=rule, ok=left == right, found=", ".join(left) or "none", expected=", ".join(right) or "none")


def nothing(rule: str, *, bad: Iterable[str], good: str, expected: str, most: int = 6) -> Check:
    """Nothing may be bad. The first few are named where something is."""
    names = list(bad)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    found = "; ".join(names[:most]) + more if names else good
    return Check(rule=rule, ok=not names, found=found, expected=expected)


def passed(checks: Iterable[Check]) -> bool:
    return all(check.ok for check in checks)
