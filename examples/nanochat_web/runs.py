"""Evaluation runs on disk: one JSON file and one log each. Written beside, renamed into place."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from flash_attn3_sm121.errors import UsageError

from .tasks import Progress, plain

State = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
LOG_SHOWN = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Run:
    """One evaluation. Times are seconds since 1970."""

    id: str
    model: str
    name: str
    task: str
    limit: int | None
    state: State
    created: float
    started: float | None = None
    ended: float | None = None
    command: str = ""
    note: str = ""
    progress: Progress = field(default_factory=Progress)

    @property
    def over(self) -> bool:
        return self.state not in ("queued", "running")

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Run:
        """From a file's object; raises ValueError where it is none of ours."""
        try:
            return TypeAdapter(cls).validate_python(data)
        except ValidationError as error:
            wrong = error.errors()[0]
            place = ".".join(map(str, wrong["loc"]))
            raise ValueError(f"{place}: {wrong['msg']}, found {str(wrong['input'])[:80]}") from error


def new_id() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def default_state() -> Path:
    """By the XDG rules."""
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "flash-attn3-nanochat-web"


class Store:
    """The state folder; one server at a time has it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "evaluations"
        self.broken: list[str] = []

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The folder made, and locked against a second server, which would take the runs of this one for dead."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.root / "lock").open("a+")
        except OSError as error:
            raise UsageError(
                f"--state {self.root} cannot be written: {error.strerror}", hint="--state DIR names another folder"
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise UsageError(
                    f"--state {self.root} is in use by another server (process {lock.read().strip() or 'unknown'})",
                    hint="stop that one, or give this one a folder of its own: --state DIR",
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    @property
    def running(self) -> Path:
        """Locked by the evaluation under way, even where its server was killed."""
        return self.root / "evaluation.lock"

    def log(self, run: Run) -> Path:
        return self.folder / f"{run.id}.log"

    def save(self, run: Run) -> None:
        path = self.folder / f"{run.id}.json"
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(asdict(run), indent=1) + "\n", encoding="utf-8")
        beside.replace(path)

    def delete(self, run: Run) -> None:
        (self.folder / f"{run.id}.json").unlink(missing_ok=True)
        self.log(run).unlink(missing_ok=True)

    def load(self) -> dict[str, Run]:
        """All runs, oldest first. One that was under way when a server ended is marked so, on disk as well."""
        runs: dict[str, Run] = {}
        for path in sorted(self.folder.glob("*.json")):
            try:
                run = Run.parse(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError) as error:
                self.broken.append(f"{path}: {type(error).__name__}: {error}")
                continue
            if not run.over:
                run = replace(run, state="interrupted", note="The server ended while this was under way.")
                self.save(run)
            runs[run.id] = run
        return runs

    def shown_log(self, run: Run) -> str:
        """The end of a log, without codes for a terminal; of a line that was overwritten, its last state."""
        try:
            with self.log(run).open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - LOG_SHOWN))
                text = file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
        return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in plain(text).split("\n"))
