"""nanochat's evaluations as data, the command of one, and its progress read from what the script prints. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from .checkpoints import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Task:
    """`size` is the number of problems (for CORE, of tasks); `spoken` says whether the script counts while it runs."""

    name: str
    about: str
    script: str
    style: str
    size: int
    spoken: bool


TASKS: tuple[Task, ...] = (
    Task(
        name="ARC-Easy",
        about="school science questions, one right answer of four",
        script="chat_eval",
        style="chat",
        size=2376,
        spoken=False,
    ),
    Task(
        name="ARC-Challenge",
        about="the harder school science questions",
        script="chat_eval",
        style="chat",
        size=1172,
        spoken=False,
    ),
    Task(
        name="MMLU",
        about="57 subjects from school to profession, one right answer of four",
        script="chat_eval",
        style="chat",
        size=14042,
        spoken=False,
    ),
    Task(
        name="GSM8K",
        about="word problems of primary school mathematics",
        script="chat_eval",
        style="chat",
        size=1319,
        spoken=True,
    ),
    Task(
        name="HumanEval",
        about="short Python functions; what the model writes is run on the server",
        script="chat_eval",
        style="chat",
        size=164,
        spoken=True,
    ),
    Task(
        name="SpellingBee",
        about="spelling words and counting their letters",
        script="chat_eval",
        style="chat",
        size=256,
        spoken=True,
    ),
    Task(
        name="CORE",
        about="22 tasks for models that were not taught to chat; 0 is guessing, 1 is perfect",
        script="base_eval",
        style="text",
        size=22,
        spoken=True,
    ),
)
BY_NAME = {task.name: task for task in TASKS}


@dataclass(frozen=True, kw_only=True)
class Script:
    """What one of nanochat's evaluation scripts can be asked, read from its text: it differs between versions."""

    name: str
    text: str

    def knows(self, word: str) -> bool:
        return f"'{word}'" in self.text or f'"{word}"' in self.text


def refusal(task: Task, script: Script | None, checkpoint: Checkpoint) -> str | None:
    """Why this checkout cannot run this task on this model, or None."""
    if script is None:
        return f"this nanochat has no scripts/{task.script}.py"
    if task.style != checkpoint.source.style:
        return f"{task.name} is for {'chat' if task.style == 'chat' else 'base'} models"
    if task.script == "chat_eval" and not script.knows(task.name):
        return f"this nanochat does not know {task.name}"
    if not script.knows("--model-tag") or not script.knows("--step"):
        return f"this nanochat's {task.script} cannot be told which model to take: it always takes the largest"
    return None


def arguments(task: Task, script: Script, checkpoint: Checkpoint, limit: int | None) -> tuple[str, ...]:
    """What follows `python`."""
    chosen = ("--model-tag", checkpoint.tag, "--step", str(checkpoint.step))
    if task.script == "chat_eval":
        more = ("-x", str(limit)) if limit else ()
        return ("-m", "scripts.chat_eval", "-i", checkpoint.source.name, "-a", task.name, *chosen, *more)
    # Where it can also sample texts and measure bits per byte, only CORE is wanted.
    only = ("--eval", "core") if script.knows("--eval") else ()
    more = ("--max-per-task", str(limit)) if limit else ()
    return ("-m", "scripts.base_eval", *only, *chosen, *more)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an evaluation is. `total` is what it will come to, `right` of `done` were solved."""

    done: int = 0
    total: int | None = None
    right: int | None = None
    result: float | None = None
    unit: str = "percent"

    def to_json(self) -> dict[str, Any]:
        return {
            "done": self.done,
            "total": self.total,
            "right": self.right,
            "result": self.result,
            "unit": self.unit,
        }


_COUNT = re.compile(r"(\d+)/(\d+) \((\d+(?:\.\d+)?)%\)")
_FINAL = re.compile(r"(?:^|\s)Final: (\d+)/(\d+) \((\d+(?:\.\d+)?)%\)")
_ONE_CORE = re.compile(r"accuracy: \d+\.\d+ \| centered: -?\d+\.\d+")
_CORE = re.compile(r"(?:CORE metric: |^CORE\s*,\s*,\s*)(-?\d+\.\d+)")
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def start(task: Task, limit: int | None) -> Progress:
    if task.script == "base_eval":
        return Progress(total=task.size, unit="core")
    return Progress(total=min(limit, task.size) if limit else task.size)


def read(progress: Progress, lines: Iterable[str]) -> Progress:
    """What more lines of output say."""
    for raw in lines:
        line = _ANSI.sub("", raw).strip()
        if progress.unit == "core":
            if found := _CORE.search(line):
                progress = replace(progress, result=float(found[1]), done=progress.total or progress.done)
            elif _ONE_CORE.search(line):
                progress = replace(progress, done=progress.done + 1)
        elif found := _FINAL.search(line):
            right, done = int(found[1]), int(found[2])
            progress = replace(progress, right=right, done=done, total=done, result=float(found[3]))
        elif found := _COUNT.search(line):
            progress = replace(progress, right=int(found[1]), done=int(found[2]))
    return progress


def whole_lines(held: str, chunk: str) -> tuple[list[str], str]:
    """Complete lines (a carriage return ends one too) and what is left over."""
    *lines, rest = re.split(r"\r\n|\n|\r", held + chunk)
    return lines, rest[-4096:]
