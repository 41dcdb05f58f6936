"""Progress on a terminal and in a log, by a clock of the test's own; where the content cache lies."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from ci.cache.folders import cache_root, locked, making
from ci.console import Narrator, format_bytes, format_seconds
from ci.index.config import default_index


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(stream: io.StringIO, seconds: float) -> str:
    """Four advances, so many seconds apart."""
    now = [0.0]
    narrate = Narrator(stream=stream, clock=lambda: now[0])
    with narrate.progress("compile", 4, unit="units") as progress:
        for _ in range(4):
            now[0] += seconds
            progress.advance(detail="fwd_128")
    return stream.getvalue()


def test_a_terminal_line_is_redrawn_and_ends_as_a_plain_line() -> None:
    text = run(Terminal(), 10)
    assert "\rcompile: 1 units of 4 units (25 %), ETA 30 s, fwd_128" in text
    assert text.endswith("\rcompile: 4 units in 40 s\n")


def test_a_log_gets_plain_lines_and_not_too_many() -> None:
    assert "\r" not in run(io.StringIO(), 20)
    assert len(run(io.StringIO(), 20).splitlines()) == 5
    assert run(io.StringIO(), 1).splitlines() == ["compile: 4 units in 4.0 s"]


def test_a_failure_is_not_reported_as_done() -> None:
    stream = io.StringIO()
    with pytest.raises(ZeroDivisionError), Narrator(stream=stream).progress("fetch", 2):
        raise ZeroDivisionError
    assert stream.getvalue() == ""


def test_commands_are_printed_as_one_could_type_them() -> None:
    stream = io.StringIO()
    done = Narrator(stream=stream).run([sys.executable, "-c", "print('a b')"])
    assert stream.getvalue() == f"$ {sys.executable} -c 'print('\"'\"'a b'\"'\"')'\n"
    assert done.stdout == "a b\n"


def test_quantities_read_well() -> None:
    assert [format_bytes(n) for n in (999, 14.3e6, 2.5e9)] == ["1 kB", "14.3 MB", "2.50 GB"]
    assert [format_seconds(n) for n in (0.24, 9.96, 59.7, 61, 3660)] == [
        "0.2 s",
        "10.0 s",
        "1:00 min",
        "1:01 min",
        "1:01 h",
    ]


def test_where_the_cache_is() -> None:
    home = {"HOME": "/home/u"}
    assert cache_root(home) == Path("/home/u/.cache/flash-attn3-sm121")
    assert cache_root({**home, "XDG_CACHE_HOME": "/x"}) == Path("/x/flash-attn3-sm121")
    assert cache_root({**home, "XDG_CACHE_HOME": "/x", "FA3_CACHE": "/y"}) == Path("/y")


def test_an_entry_is_whole_or_absent(tmp_path: Path) -> None:
    with locked(tmp_path, "a/b"):
        with pytest.raises(ZeroDivisionError), making(tmp_path, "a/b") as work:
            (work / "half").write_text("")
            raise ZeroDivisionError
        assert not (tmp_path / "a").exists()
        for text in ("one", "two"):
            with making(tmp_path, "a/b") as work:
                (work / "file").write_text(text)
            assert (tmp_path / "a" / "b" / "file").read_text() == text
    assert not list((tmp_path / "tmp").iterdir())


def test_the_public_index_is_known_where_pip_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    visible = default_index()
    monkeypatch.setitem(sys.modules, "pip._internal.models.index", None)
    assert default_index() == visible
