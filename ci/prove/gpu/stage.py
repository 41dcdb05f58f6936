"""A stage and its result, as data. A stage is one child process, or several where it had to be started again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

Kind = Literal["cases", "command"]


class Status(str, Enum):
    """How a stage, or one case in it, ended."""

    OK = "ok"
    WRONG = "wrong"  # it ran and gave a wrong answer
    FAILED = "failed"  # an exception, or an exit code
    CRASHED = "crashed"  # ended by a signal
    TIMEOUT = "timeout"  # its time was up
    REFUSED = "refused"  # the library says it does not do this, and why
    NOT_APPLICABLE = "not applicable"

    def __str__(self) -> str:
        return self.value

    @property
    def good(self) -> bool:
        return self in (Status.OK, Status.REFUSED, Status.NOT_APPLICABLE)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of the run. The runner appends `--from` and `--out` to the `argv` of a stage of cases."""

    name: str
    title: str
    argv: tuple[str, ...]
    kind: Kind = "cases"
    share: float  # of the whole time, in relation to the others that remain
    stall_s: float = 60.0  # a single case may take that long, the first one thrice
    env: Mapping[str, str] = field(default_factory=dict)
    absent: str | None = None  # why it is not applicable here; nothing is started then
    reader: str = "exit"  # how a command's outcome is read: a name in ci.prove.gpu.outcomes.READERS
    files: tuple[str, ...] = ()  # what a command writes, kept beside the results


@dataclass(frozen=True, kw_only=True)
class Case:
    """The result of one case, as its child recorded it."""

    name: str
    dtype: str
    status: Status
    reason: str = ""
    findings: tuple[Mapping[str, Any], ...] = ()

    @property
    def worst(self) -> float:
        """The largest error as a share of what is allowed; infinite where the two cannot be compared."""
        return max((finding["share"] for finding in self.findings), default=0.0)


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """The result of a stage."""

    name: str
    title: str
    status: Status
    reason: str = ""
    seconds: float = 0.0
    budget_s: float = 0.0
    exit_codes: tuple[int, ...] = ()
    cases: tuple[Case, ...] = ()
    planned: int | None = None  # cases there are, where known
    data: Mapping[str, Any] = field(default_factory=dict)
    tail: str = ""  # the end of what it printed, where something is wrong
    files: tuple[str, ...] = ()

    def count(self, status: Status) -> int:
        return sum(case.status is status for case in self.cases)

    @property
    def summary(self) -> str:
        """One line for a person."""
        if not self.cases:
            return self.reason
        counts = [f"{self.count(status)} {status}" for status in Status if self.count(status)]
        ran = [case for case in self.cases if case.status is Status.OK and case.findings]
        worst = max(ran, key=lambda case: case.worst, default=None)
        if worst is not None and worst.worst > 0:
            counts.append(f"closest to its limit: {worst.worst:.2g} of it ({worst.name}, {worst.dtype})")
        of = f" of {self.planned}" if self.planned and self.planned != len(self.cases) else ""
        return f"{len(self.cases)}{of} cases: {', '.join(counts)}" + (f"; {self.reason}" if self.reason else "")
