"""Narration on stderr: what is being done, each outside command before it runs, and progress with an ETA.

On a terminal a progress line is redrawn in place; elsewhere (a log, a pipe) it becomes plain lines, spaced in time so
that a long build tells that it lives without flooding the log. stdout belongs to results.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TextIO

REDRAW_SECONDS = 0.2
PLAIN_LINE_SECONDS = 15.0


def format_bytes(count: float) -> str:
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def format_seconds(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


@dataclass(kw_only=True)
class Progress:
    """One running piece of work. `advance` from any thread; use as a context manager."""

    label: str
    total: float | None
    unit: str  # "B" prints megabytes; anything else is printed as a count of that word
    narrate: Narrator
    done: float = 0.0
    detail: str = ""
    started: float = field(init=False)
    _shown: float = field(init=False)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.started = self.narrate.clock()
        self._shown = self.started

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.narrate.clear_line()
        if kind is None:
            elapsed = format_seconds(self.narrate.clock() - self.started)
            self.narrate.note(f"{self.label}: {self._amount(self.done)} in {elapsed}")

    def advance(self, amount: float = 1.0, *, detail: str | None = None) -> None:
        with self._lock:
            self.done += amount
            if detail is not None:
                self.detail = detail
            now = self.narrate.clock()
            wait = REDRAW_SECONDS if self.narrate.terminal else PLAIN_LINE_SECONDS
            if now - self._shown >= wait:
                self._shown = now
                self.narrate.redraw(self.text(now))

    def text(self, now: float) -> str:
        """The progress line at a time: label, amount of total, percent, rate or detail, ETA."""
        parts = [f"{self.label}: {self._amount(self.done)}"]
        elapsed = now - self.started
        if self.total:
            parts[0] += f" of {self._amount(self.total)} ({100 * self.done / self.total:.0f} %)"
        if self.unit == "B" and elapsed > 0:
            parts.append(f"{format_bytes(self.done / elapsed)}/s")
        if self.total and self.done > 0:
            parts.append(f"ETA {format_seconds(elapsed * max(0.0, self.total - self.done) / self.done)}")
        if self.detail:
            parts.append(self.detail)
        return ", ".join(parts)

    def _amount(self, value: float) -> str:
        return format_bytes(value) if self.unit == "B" else f"{value:g} {self.unit}"


@dataclass(kw_only=True)
class Narrator:
    """Where narration goes. Tests pass a StringIO and a clock of their own."""

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    clock: Callable[[], float] = time.monotonic
    quiet: bool = False
    _drawn: int = field(init=False, default=0)

    @property
    def terminal(self) -> bool:
        return self.stream.isatty()

    def note(self, text: str) -> None:
        if self.quiet:
            return
        self.clear_line()
        print(text, file=self.stream, flush=True)

    def command(self, argv: Sequence[str | Path]) -> None:
        """Print an outside command as one could type it; call it before running the command."""
        self.note("$ " + shlex.join(str(word) for word in argv))

    def run(
        self, argv: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Print and run an outside command, its output captured; the caller judges the exit code."""
        self.command(argv)
        words = [str(word) for word in argv]
        return subprocess.run(words, cwd=cwd, env=env, text=True, capture_output=True, check=False)

    def progress(self, label: str, total: float | None = None, *, unit: str = "B") -> Progress:
        return Progress(label=label, total=total, unit=unit, narrate=self)

    def redraw(self, text: str) -> None:
        if self.quiet:
            return
        if not self.terminal:
            print(text, file=self.stream, flush=True)
            return
        width = shutil.get_terminal_size().columns - 1
        text = text if len(text) <= width else text[: width - 1] + "…"  # a line that wraps cannot be redrawn
        pad = " " * max(0, self._drawn - len(text))
        print(f"\r{text}{pad}", end="", file=self.stream, flush=True)
        self._drawn = len(text)

    def clear_line(self) -> None:
        if self._drawn:
            print("\r" + " " * self._drawn + "\r", end="", file=self.stream, flush=True)
            self._drawn = 0
