"""Runs the stages in order. However one ends, its result is recorded and the next one runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ci.prove.gpu import casework, child, outcomes
from ci.prove.gpu.stage import Stage, StageResult, Status
from flash_attn3_sm121.console import Narrator


def _command(stage: Stage, *, cwd: Path, env: Mapping[str, str], budget_s: float) -> StageResult:
    ended = child.run_watched(stage.argv, cwd=cwd, env=env, limit_s=budget_s, log=cwd / f"{stage.name}.log")
    status, reason = Status.TIMEOUT, ended.how
    data: Mapping[str, Any] = {}
    if ended.killed is None and ended.code < 0:
        status = Status.CRASHED
    elif ended.killed is None:
        try:
            status, reason, data = outcomes.READERS[stage.reader](ended, cwd)
        except (KeyError, TypeError, ValueError) as error:  # it printed something else than it should
            status, reason = Status.FAILED, f"unreadable result: {type(error).__name__}: {error}"
    return StageResult(
        name=stage.name, title=stage.title, status=status, reason=reason, seconds=ended.seconds, budget_s=budget_s,
        exit_codes=(ended.code,), data=data, tail="" if status.good else ended.tail,
        files=tuple(name for name in stage.files if (cwd / name).is_file()),
    )  # fmt: skip


def _checked(result: StageResult, log: Path) -> StageResult:
    """The result of a stage under compute-sanitizer: its cases and the checker's summary must both be right."""
    both = [path for path in (log, log.with_suffix(".stdout")) if path.is_file()]  # it writes to stdout
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in both)
    status, said = outcomes.sanitizer(text)
    if status is Status.NOT_APPLICABLE:
        return replace(result, status=status, reason=said, cases=())
    reason = f"{said}; {result.reason}" if result.reason else said
    own = result.status if result.status is not Status.OK else status
    return replace(result, status=own, reason=reason, tail=result.tail or ("" if own.good else text[-4000:]))


def run_stage(stage: Stage, *, cwd: Path, env: Mapping[str, str], budget_s: float) -> StageResult:
    if stage.absent is not None:
        return StageResult(name=stage.name, title=stage.title, status=Status.NOT_APPLICABLE, reason=stage.absent)
    merged = {**env, **stage.env}
    if stage.kind == "command":
        return _command(stage, cwd=cwd, env=merged, budget_s=budget_s)
    result = casework.run_cases(stage, cwd=cwd, env=merged, budget_s=budget_s)
    return _checked(result, cwd / f"{stage.name}.log") if stage.reader == "sanitizer" else result


def run_all(
    stages: Sequence[Stage],
    *,
    cwd: Path,
    env: Mapping[str, str],
    seconds: float,
    keep: Callable[[Sequence[StageResult]], None] = lambda _: None,
) -> tuple[StageResult, ...]:
    """Run the stages. Time that one leaves over goes to the later ones.

    Args:
        seconds: for all stages together.
        keep: called after each stage with all results so far.
    """
    begun, results, narrate = time.monotonic(), list[StageResult](), Narrator()
    for place, stage in enumerate(stages):
        left = seconds - (time.monotonic() - begun)
        shares = sum(other.share for other in stages[place:] if other.absent is None)
        budget = max(0.0, left) * stage.share / shares if stage.absent is None else 0.0
        if stage.absent is None:
            narrate.note(f"{stage.title} (at most {budget:.0f} s)")
            narrate.command(stage.argv)
        result = run_stage(stage, cwd=cwd, env=env, budget_s=budget)
        narrate.note(f"  {stage.name}: {result.status}, {result.seconds:.0f} s; {result.summary}")
        results.append(result)
        keep(results)
    return tuple(results)
