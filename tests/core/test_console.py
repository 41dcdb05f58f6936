"""Progress on a terminal and in a log, by a clock of the test's own; where the content cache lies."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from ci.cache.folders import cache_root, locked, making
from ci.process import execute
from flash_attn3_sm121.console import Narrator, Styled, Table, format_bytes, format_seconds, show


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


def compile_four(stream: io.StringIO, seconds: float) -> str:
    """What is printed by four units, so many seconds apart."""
    now = [0.0]
    narrate = Narrator(stream=stream, clock=lambda: now[0])
    with narrate.progress("compile", 4, unit="units") as progress:
        for _ in range(4):
            now[0] += seconds
            progress.advance(detail="fwd_128")
    return stream.getvalue()


def without_escapes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_terminal_shows_a_bar_that_ends_as_a_plain_line() -> None:
    shown = compile_four(Terminal(), 10)
    text = without_escapes(shown)
    assert "1 of 4 units (25 %), ETA 30 s, fwd_128" in text
    assert text.endswith("compile: 4 units in 40 s\n")
    assert all(len(line) <= 80 for line in re.split(r"[\r\n]", text))


def test_no_color_takes_the_colours_and_leaves_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = re.compile(r"\x1b\[[0-9;]*m")
    assert coloured.search(compile_four(Terminal(), 10))
    monkeypatch.setenv("NO_COLOR", "1")
    plain = compile_four(Terminal(), 10)
    assert "ETA 30 s" in without_escapes(plain) and not coloured.search(plain)


def test_a_log_gets_plain_lines_and_not_too_many() -> None:
    lines = compile_four(io.StringIO(), 20).splitlines()
    assert lines[0] == "compile: 1 of 4 units (25 %), ETA 1:00 min, fwd_128"
    assert len(lines) == 5 and lines[-1] == "compile: 4 units in 1:20 min"
    assert compile_four(io.StringIO(), 1).splitlines() == ["compile: 4 units in 4 s"]


@pytest.mark.parametrize("why", ["dumb", "no rich"])
def test_plain_lines_where_a_terminal_cannot_draw_or_rich_is_missing(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    else:
        monkeypatch.setitem(sys.modules, "rich", None)
    assert compile_four(Terminal(), 20) == compile_four(io.StringIO(), 20)
    stream = Terminal()
    show(["a", WIDE], stream)
    assert stream.getvalue() == f"a\n{WIDE}"


def test_a_failure_is_not_reported_as_done() -> None:
    stream = io.StringIO()
    with pytest.raises(ZeroDivisionError), Narrator(stream=stream).progress("fetch", 2):
        raise ZeroDivisionError
    assert stream.getvalue() == ""


def test_commands_are_printed_as_one_could_type_them() -> None:
    stream = io.StringIO()
    done = execute([sys.executable, "-c", "print('a b')"], narrate=Narrator(stream=stream))
    assert stream.getvalue() == f"$ {sys.executable} -c 'print('\"'\"'a b'\"'\"')'\n"
    assert done.stdout == "a b\n"


def test_a_note_is_not_wrapped_and_square_brackets_are_no_markup() -> None:
    stream, words = Terminal(), "[bold]pip install 'x[hub]'[/bold] " * 10
    Narrator(stream=stream).note(words)
    assert stream.getvalue().strip() == words.strip()


WIDE = Table(
    head=("name", "kernels", "spread", "why"),
    rows=[
        ("forward", "7", "1 ms .. 2 ms and more of it", Styled("as fast as it was before, and much smaller", "green")),
        ("backward", "12", "-", "short"),
    ],
    right=frozenset({1}),
    spare=(2,),
)


def test_a_table_is_aligned_in_a_pipe_and_fits_a_terminal() -> None:
    stream = io.StringIO()
    show([WIDE], stream)
    assert stream.getvalue().splitlines()[2] == "backward       12  -                            short"
    terminal = Terminal()
    show([WIDE], terminal)
    lines = without_escapes(terminal.getvalue()).splitlines()
    assert all(len(line) <= 80 for line in lines) and "\x1b[32m" in terminal.getvalue()
    assert "spread" in lines[0], "it fits with the last column wrapped"
    assert WIDE.fitting(40) == [0, 1, 3]


@pytest.mark.parametrize(
    ("value", "words"),
    [(999, "999 B"), (1000, "0.977 KiB"), (14.3 * 2**20, "14.3 MiB"), (2.5 * 2**30, "2.5 GiB"), (3 * 2**40, "3072 GiB"),
     (None, "-")],
)  # fmt: skip
def test_sizes_read_well(value: float | None, words: str) -> None:
    assert format_bytes(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0 s"), (8.123e-4, "812 us"), (0.24, "240 ms"), (0.9999, "1 s"), (9.96, "9.96 s"), (59.97, "1:00 min"),
     (61, "1:01 min"), (3660, "1:01 h"), (None, "-")],
)  # fmt: skip
def test_durations_read_well(value: float | None, words: str) -> None:
    assert format_seconds(value) == words


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FA3_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/u")
    assert cache_root() == Path("/home/u/.cache/flash-attn3-sm121")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_root() == Path("/x/flash-attn3-sm121")
    monkeypatch.setenv("FA3_CACHE", "/y")
    assert cache_root() == Path("/y")


def test_an_entry_is_whole_or_absent(tmp_path: Path) -> None:
    with locked(tmp_path, "a/b"):
        with pytest.raises(ZeroDivisionError), making(tmp_path, "a/b") as work:
            (work / "half").write_text("")
            raise ZeroDivisionError
        assert not list((tmp_path / "a").iterdir())
        for text in ("one", "two"):
            with making(tmp_path, "a/b") as work:
                (work / "file").write_text(text)
            assert (tmp_path / "a" / "b" / "file").read_text() == text
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
