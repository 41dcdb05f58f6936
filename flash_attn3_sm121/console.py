"""What both command lines print with: sizes, durations, tables, notes, and progress with an ETA.

rich draws on a terminal. In a log or a pipe, with TERM=dumb, and where rich is not installed (`pip install --no-deps`),
the same content comes as plain lines. rich itself honours NO_COLOR. Results go to stdout, narration to stderr.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID
    from rich.table import Table as RichTable

REDRAW_SECONDS = 0.2  # between two looks of a bar
PLAIN_LINE_SECONDS = 15.0  # between two lines about the same work in a log
GAP = 2  # spaces between two columns of a table
NARROWEST = 24  # what a column that wraps keeps at least on a narrow terminal


def format_bytes(count: float | None) -> str:
    """Three digits and a binary unit: `567 KiB`, `16.1 MiB`. None is `-`."""
    if count is None:
        return "-"
    value, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while abs(value) >= 999.5 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if abs(value) >= 999.5 else f"{value:.3g} {units[0]}"


def format_seconds(seconds: float | None) -> str:
    """Three digits below a minute (`52.4 ms`, `9.96 s`), then `1:01 min` and `1:01 h`. None is `-`."""
    if seconds is None:
        return "-"
    for unit, size in (("us", 1e-6), ("ms", 1e-3), ("s", 1.0)):
        if 0 < abs(seconds) < 999.5 * size and (unit != "s" or abs(seconds) < 59.95):
            return f"{seconds / size:.3g} {unit}"
    whole = round(seconds)
    if whole == 0:
        return "0 s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


class Styled(NamedTuple):
    """A cell with one of rich's styles (`green`, `bold red`); plain output leaves the style out."""

    text: str
    style: str


Cell = str | Styled


def _text(cell: Cell) -> str:
    return cell.text if isinstance(cell, Styled) else cell


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of equal length. `str(table)` is the plain form; `show` draws it on a terminal.

    `right` names the columns of numbers, `spare` those that a narrow terminal leaves out, first one first. The last
    column wraps; it keeps `narrowest` characters as long as there are others to leave out.
    """

    rows: Sequence[Sequence[Cell]]
    head: Sequence[str] = ()
    right: frozenset[int] = frozenset()
    spare: Sequence[int] = ()
    narrowest: int = NARROWEST

    @property
    def lines(self) -> list[list[str]]:
        head = [list(self.head)] if self.head else []
        return head + [[_text(cell) for cell in row] for row in self.rows]

    @property
    def widths(self) -> list[int]:
        return [max(map(len, column)) for column in zip(*self.lines, strict=True)]

    def __str__(self) -> str:
        widths = self.widths
        return "".join((" " * GAP).join(self._aligned(line, widths)).rstrip() + "\n" for line in self.lines)

    def _aligned(self, line: Sequence[str], widths: Sequence[int]) -> Iterable[str]:
        for column, (cell, width) in enumerate(zip(line, widths, strict=True)):
            yield cell.rjust(width) if column in self.right else cell.ljust(width)

    def fitting(self, width: int) -> list[int]:
        """The columns that are shown in so many characters."""
        widths = self.widths
        kept = list(range(len(widths)))
        for column in (None, *self.spare):
            kept = [index for index in kept if index != column]
            needed = [widths[index] for index in kept]
            needed[-1] = min(needed[-1], self.narrowest)
            if sum(needed) + GAP * (len(kept) - 1) <= width:
                break
        return kept

    def drawn(self, width: int) -> RichTable:
        """The table for a terminal of this width."""
        from rich.table import Table as RichTable
        from rich.text import Text

        kept = self.fitting(width)
        drawn = RichTable(
            box=None, show_header=bool(self.head), header_style="bold", pad_edge=False, padding=(0, GAP, 0, 0)
        )
        for column in kept:
            last = column == kept[-1]
            drawn.add_column(
                self.head[column] if self.head else "",
                justify="right" if column in self.right else "left",
                no_wrap=not last,
                overflow="fold" if last else "ellipsis",
            )
        for row in self.rows:
            cells = (row[column] for column in kept)
            drawn.add_row(*(Text(_text(cell), style=cell.style if isinstance(cell, Styled) else "") for cell in cells))
        return drawn


class Verbatim(NamedTuple):
    """A line that no terminal may break, such as a command that people copy."""

    text: str


Block = str | Verbatim | Table


def paragraph(text: str) -> list[Block]:
    """Prose as lines of at most 80 characters, on a terminal and elsewhere."""
    return [*textwrap.wrap(text, 80, break_on_hyphens=False)]


def plain(blocks: Iterable[Block]) -> str:
    """Blocks as they stand in a file or a pipe. A string is a line of its own."""
    return "".join(str(block) if isinstance(block, Table) else f"{_line(block)}\n" for block in blocks)


def _line(block: str | Verbatim) -> str:
    return block.text if isinstance(block, Verbatim) else block


def _wrapped(line: str, width: int) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    lines = textwrap.wrap(
        line.strip(), width, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return "\n".join(lines)


def show(blocks: Iterable[Block], stream: TextIO | None = None) -> None:
    """Print blocks to stdout or another stream. On a terminal, text and tables are fitted to its width."""
    stream = sys.stdout if stream is None else stream
    screen = screen_of(stream)
    if screen is None:
        stream.write(plain(blocks))
        return
    for block in blocks:
        if isinstance(block, Table):
            screen.print(block.drawn(screen.width))
        else:
            screen.print(block.text if isinstance(block, Verbatim) else _wrapped(block, screen.width), soft_wrap=True)


def screen_of(stream: TextIO) -> Console | None:
    """rich's console on a stream; None where plain lines are wanted, or all there is."""
    if not stream.isatty() or os.environ.get("TERM") in ("dumb", "unknown") or not importlib.util.find_spec("rich"):
        return None
    from rich.console import Console

    return Console(file=stream, force_terminal=True, markup=False, highlight=False, emoji=False)


@dataclass(kw_only=True)
class Progress:
    """One piece of work with an ETA. Use it as a context manager; `advance` and `tell` from any thread.

    `done` may be set before the first `advance`, for work that an earlier run has done.
    """

    label: str
    total: float | None
    unit: str  # "B" prints sizes; anything else is printed as a count of that word
    narrate: Narrator
    done: float = 0.0
    detail: str = ""
    started: float = field(init=False)
    _before: float | None = field(init=False, default=None)  # `done` at the first `advance`
    _told: float = field(init=False)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.started = self._told = self.narrate.clock()

    def __enter__(self) -> Progress:
        self.narrate.bars.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.narrate.bars.remove(self)
        if kind is None:
            elapsed = format_seconds(self.narrate.clock() - self.started)
            self.narrate.note(f"{self.label}: {self._amount(self.done)} in {elapsed}")

    def advance(self, amount: float = 1.0, *, detail: str | None = None) -> None:
        """Count work that is done, and say what is being done now."""
        with self._lock:
            self._before = self.done if self._before is None else self._before
            self.done += amount
            self.detail = self.detail if detail is None else detail
        self._tell()

    def tell(self, detail: str) -> None:
        """Say what is being done now."""
        self.advance(0, detail=detail)

    def _tell(self) -> None:
        """Redraw the bar, or print a line in a log, if that was not done just now."""
        with self._lock:
            now = self.narrate.clock()
            pause = REDRAW_SECONDS if self.narrate.terminal else PLAIN_LINE_SECONDS
            if now - self._told < pause:
                return
            self._told = now
        if self.narrate.terminal:
            self.narrate.bars.redraw(self)
        else:
            self.narrate.note(f"{self.label}: {self.text(now)}")

    def text(self, now: float) -> str:
        """What is known at a time: amount of total, percent, rate, ETA, detail."""
        parts = [self._amount(self.done)]
        elapsed, new = now - self.started, self.done - (self._before or 0.0)
        if self.total:
            of = self._amount(self.total) if self.unit == "B" else f"{self.total:g} {self.unit}"
            count = self._amount(self.done) if self.unit == "B" else f"{self.done:g}"
            parts[0] = f"{count} of {of} ({100 * self.done / self.total:.0f} %)"
        if self.unit == "B" and elapsed > 0:
            parts.append(f"{format_bytes(new / elapsed)}/s")
        if self.total and new > 0 and self.done < self.total:
            parts.append(f"ETA {format_seconds(elapsed * (self.total - self.done) / new)}")
        if self.detail:
            parts.append(self.detail)
        return ", ".join(parts)

    def _amount(self, value: float) -> str:
        return format_bytes(value) if self.unit == "B" else f"{value:g} {self.unit}"


@dataclass(kw_only=True)
class _Bars:
    """The bars that a terminal shows at the moment; nothing elsewhere. They are redrawn by `advance`, by no thread."""

    screen: Console | None
    clock: Callable[[], float]
    _shown: Bars | None = None
    _tasks: dict[int, TaskID] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def add(self, progress: Progress) -> None:
        if self.screen is None:
            return
        with self._lock:
            if self._shown is None:
                self._shown = _new_bars(self.screen)
                self._shown.start()
            self._tasks[id(progress)] = self._shown.add_task(progress.label, total=progress.total, words="")
            self.redraw(progress)

    def redraw(self, progress: Progress) -> None:
        with self._lock:
            if self._shown is not None and id(progress) in self._tasks:
                words = progress.text(self.clock())
                self._shown.update(self._tasks[id(progress)], completed=progress.done, words=words)
                self._shown.refresh()

    def remove(self, progress: Progress) -> None:
        with self._lock:
            if self._shown is None or id(progress) not in self._tasks:
                return
            self._shown.remove_task(self._tasks.pop(id(progress)))
            if not self._tasks:
                self._shown.stop()
                self._shown = None


def _new_bars(screen: Console) -> Bars:
    """rich's own display of progress: label, bar, and the words of `Progress.text`, in one line each."""
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    return Bars(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=16),
        TextColumn(
            "{task.fields[words]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
        ),
        console=screen,
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,  # results are not narration
        expand=True,
    )


@dataclass(kw_only=True)
class Narrator:
    """Where narration goes: stderr, unless a test passes a stream and a clock of its own."""

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    clock: Callable[[], float] = time.monotonic
    quiet: bool = False
    screen: Console | None = field(init=False)
    bars: _Bars = field(init=False)

    def __post_init__(self) -> None:
        self.screen = None if self.quiet else screen_of(self.stream)
        self.bars = _Bars(screen=self.screen, clock=self.clock)

    @property
    def terminal(self) -> bool:
        return self.screen is not None

    def note(self, text: str, *, style: str = "") -> None:
        """Print a line, above any bar that is shown."""
        if self.quiet:
            return
        if self.screen is not None:
            self.screen.print(text, style=style or None, soft_wrap=True)
        else:
            print(text, file=self.stream, flush=True)

    def command(self, argv: Sequence[str | Path]) -> None:
        """Print an outside command as one could type it; call it before running the command."""
        self.note("$ " + shlex.join(str(word) for word in argv), style="cyan")

    def progress(self, label: str, total: float | None = None, *, unit: str = "B") -> Progress:
        """Work to be counted: `with narrate.progress("fetch", size) as progress: progress.advance(n)`."""
        return Progress(label=label, total=total, unit=unit, narrate=self)
