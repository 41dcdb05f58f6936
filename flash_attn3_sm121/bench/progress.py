"""Narration on stderr: on a terminal one line that rewrites itself, elsewhere plain lines; both with an ETA."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO


def clock_text(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes}:{rest:02d}"


class Progress:
    """`step` begins one of `total` steps; `detail` says what is happening within it."""

    def __init__(self, total: int, *, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._total, self._done, self._now = total, 0, now
        self._started = now()
        self._head = ""

    @property
    def eta(self) -> float | None:
        """Seconds left, from the steps that are done; None before the first."""
        spent = self._now() - self._started
        return None if self._done == 0 else spent / self._done * (self._total - self._done)

    def step(self, text: str) -> None:
        left = "" if self.eta is None else f"  (ETA {clock_text(self.eta)})"
        self._head = f"[{self._done + 1:>2}/{self._total}] {text}"
        if self._live:
            self._write(f"{self._head}{left}")
        else:
            print(f"{self._head}{left}", file=self._stream, flush=True)

    def detail(self, text: str) -> None:
        if self._live:
            left = "" if self.eta is None else f"  (ETA {clock_text(self.eta)})"
            self._write(f"{self._head}: {text}{left}")

    def done(self, summary: str) -> None:
        self._done += 1
        if self._live:
            self._write(f"{self._head}: {summary}")
            self._stream.write("\n")
            self._stream.flush()
        else:
            print(f"        {summary}", file=self._stream, flush=True)

    def note(self, text: str) -> None:
        if self._live:
            self._stream.write("\r\x1b[K")
        print(text, file=self._stream, flush=True)

    def _write(self, text: str) -> None:
        self._stream.write(f"\r\x1b[K{text}")
        self._stream.flush()
