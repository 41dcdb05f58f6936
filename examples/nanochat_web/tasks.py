"""nanochat's evaluations as data, the command of one, and its progress read from what the script prints. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .checkpoints import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Task:
    """One of them.

    Attributes:
        size: the number of problems (for CORE, of tasks).
        spoken: whether the script counts while it runs.
        data: what nanochat downloads for it, once: a data set of the Hugging Face hub, or a file.
    """

    name: str
    about: str
    script: str
    style: str
    size: int
    spoken: bool
    data: str


TASKS: tuple[Task, ...] = (
    Task(
        name="ARC-Easy",
        about="school science questions, one right answer of four",
        script="chat_eval",
        style="chat",
        size=2376,
        spoken=False,
        data="allenai/ai2_arc",
    ),
    Task(
        name="ARC-Challenge",
        about="the harder school science questions",
        script="chat_eval",
        style="chat",
        size=1172,
        spoken=False,
        data="allenai/ai2_arc",
    ),
    Task(
        name="MMLU",
        about="57 subjects from school to profession, one right answer of four",
        script="chat_eval",
        style="chat",
        size=14042,
        spoken=False,
        data="cais/mmlu",
    ),
    Task(
        name="GSM8K",
        about="word problems of primary school mathematics",
        script="chat_eval",
        style="chat",
        size=1319,
        spoken=True,
        data="openai/gsm8k",
    ),
    Task(
        name="HumanEval",
        about="short Python functions; what the model writes is run on the server",
        script="chat_eval",
        style="chat",
        size=164,
        spoken=True,
        data="openai/openai_humaneval",
    ),
    Task(
        name="SpellingBee",
        about="spelling words and counting their letters",
        script="chat_eval",
        style="chat",
        size=256,
        spoken=True,
        data="words_alpha.txt",
    ),
    Task(
        name="CORE",
        about="22 tasks for models that were not taught to chat; 0 is guessing, 1 is perfect",
        script="base_eval",
        style="text",
        size=22,
        spoken=True,
        data="eval_bundle.zip",
    ),
)
BY_NAME = {task.name: task for task in TASKS}
# What Python and the Hugging Face libraries say when something could not be downloaded.
_OFFLINE = re.compile(
    r"URLError|ConnectionError|ConnectError|Couldn't reach|name resolution|MaxRetryError|OfflineMode|LocalEntryNotFound"
)


def data_place(task: Task, *, base: Path, own_downloads: bool, environ: Mapping[str, str]) -> Path:
    """Where nanochat looks for what a task needs.

    Args:
        base: nanochat's folder.
        own_downloads: nanochat keeps data sets itself (since July 2026); before, the `datasets` library did.
        environ: the environment that nanochat runs in.
    """
    if "/" not in task.data:
        return base / task.data.removesuffix(".zip")
    if own_downloads:
        return base / "task_data" / task.data.replace("/", "--")
    home = Path(environ.get("HF_HOME") or Path(environ.get("HOME") or Path.home()) / ".cache" / "huggingface")
    return Path(environ.get("HF_DATASETS_CACHE") or home / "datasets") / task.data.replace("/", "___")


def data_remedy(task: Task, place: Path, words: str) -> str | None:
    """What to do where a script ended because it could not download; None where that was not the reason."""
    if not _OFFLINE.search(words):
        return None
    kind = "data set" if "/" in task.data else "file"
    return (
        f"It needs the {kind} {task.data}, which is not in {place} and could not be downloaded. Start this evaluation "
        "once with a network; or run it on a machine that has one, and copy that folder or file to the same place here."
    )


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


def plain(text: str) -> str:
    """Without the codes that colour a terminal."""
    return _ANSI.sub("", text)


def start(task: Task, limit: int | None) -> Progress:
    if task.script == "base_eval":
        return Progress(total=task.size, unit="core")
    return Progress(total=min(limit, task.size) if limit else task.size)


def read(progress: Progress, lines: Iterable[str]) -> Progress:
    """What more lines of output say."""
    for raw in lines:
        line = plain(raw).strip()
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
