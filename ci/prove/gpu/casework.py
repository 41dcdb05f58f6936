"""Stages of cases: read what a child recorded, and start it again after a crash, a hang or a broken device."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ci.prove.gpu import child
from ci.prove.gpu.child import Ended
from ci.prove.gpu.stage import Case, Stage, StageResult, Status

RESTARTS = 8
START_S = 180.0  # torch's import, the context, the first kernels: before the first case ends


@dataclass(kw_only=True)
class Record:
    """What a child process wrote about its cases, a line an event; read while it grows."""

    path: Path
    cases: dict[int, Case] = field(default_factory=dict)
    flight: tuple[int, str, str] | None = None
    planned: int | None = None
    package: str = ""
    done: bool = False
    changed: float = field(default_factory=time.monotonic)
    _read: int = 0

    def follow(self, now: float) -> None:
        """Read the lines that are new. A line without its end is read the next time."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        if whole:
            self._read += len(whole)
            self.changed = now
            for line in whole.decode().splitlines():
                self._take(json.loads(line))

    def _take(self, line: Mapping[str, Any]) -> None:
        event = line["event"]
        if event == "start":
            self.planned, self.package = line["planned"], line["package"]
        elif event == "begin":
            self.flight = (line["number"], line["name"], line["dtype"])
        elif event == "end":
            self.flight = None
            self.cases[line["number"]] = Case(
                name=line["name"], dtype=line["dtype"], status=Status(line["status"]), reason=line["reason"],
                findings=tuple(line["findings"]),
            )  # fmt: skip
        else:
            self.done = True

    def fell(self, ended: Ended) -> None:
        """Record the case that was running when the child ended as the cause."""
        if self.flight is None:
            return
        number, name, dtype = self.flight
        status = Status.TIMEOUT if ended.killed else Status.CRASHED if ended.code < 0 else Status.FAILED
        self.cases[number] = Case(name=name, dtype=dtype, status=status, reason=ended.how)
        self.flight = None

    @property
    def next(self) -> int:
        return max(self.cases, default=-1) + 1


def run_cases(stage: Stage, *, cwd: Path, env: Mapping[str, str], budget_s: float) -> StageResult:
    """Run the cases of a stage, in as many processes as it takes, until its time is up."""
    begun = time.monotonic()
    record = Record(path=cwd / f"{stage.name}.jsonl")
    codes: list[int] = []
    reason, tail = "", ""

    def stalled(now: float) -> str | None:
        record.follow(now)
        under_way = record.cases and record.flight is not None
        limit = stage.stall_s if under_way else max(START_S, stage.stall_s)
        quiet = now - record.changed
        return f"one case took more than {limit:.0f} s" if quiet > limit else None

    while True:
        left = budget_s - (time.monotonic() - begun)
        if left <= 0:
            break
        argv = [*stage.argv, "--from", str(record.next), "--out", str(record.path)]
        record.changed = time.monotonic()
        before = record.next
        ended = child.run_watched(argv, cwd=cwd, env=env, limit_s=left, log=cwd / f"{stage.name}.log", stalled=stalled)
        record.follow(time.monotonic())
        codes.append(ended.code)
        if record.done:
            tail = ended.tail if ended.code else ""
            break
        out_of_time = time.monotonic() - begun >= budget_s
        if not out_of_time:  # else the case in flight was merely the last one
            record.fell(ended)
        tail = ended.tail
        if out_of_time or record.next == before or len(codes) > RESTARTS:
            reason = ended.how
            break
    return _result(
        stage, record, tuple(codes), reason=reason, tail=tail, seconds=time.monotonic() - begun, budget_s=budget_s
    )


def _result(
    stage: Stage, record: Record, codes: tuple[int, ...], *, reason: str, tail: str, seconds: float, budget_s: float
) -> StageResult:
    cases = tuple(case for _, case in sorted(record.cases.items()))
    bad = next((s for s in (Status.CRASHED, Status.WRONG, Status.FAILED, Status.TIMEOUT)
                if any(case.status is s for case in cases)), None)  # fmt: skip
    if record.done and bad is None and codes[-1] == 0:
        status = Status.OK
        if not any(case.status is Status.OK for case in cases):
            status, reason = Status.FAILED, "no case ran: all were refused" if cases else "there were no cases"
    elif bad is not None:
        status = bad
    elif codes and codes[-1] < 0 and seconds < budget_s:
        status = Status.CRASHED
    else:
        status = Status.TIMEOUT if seconds >= budget_s else Status.FAILED
    if not record.done and not reason:
        reason = "its time was up"
    return StageResult(
        name=stage.name, title=stage.title, status=status, reason=reason, seconds=seconds, budget_s=budget_s,
        exit_codes=codes, cases=cases, planned=record.planned, data={"package": record.package}, tail=tail,
    )  # fmt: skip
