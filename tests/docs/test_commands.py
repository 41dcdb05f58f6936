"""The commands of the documents do what the pages say: they are typed here, in a copy of the clone; those that compile
in test_builds.py.
"""

from __future__ import annotations

import re
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.docs.kinds import Run, Serve
from tests.docs.pages import PAGES, ROOT, commands, inline_commands
from tests.docs.place import Place
from tests.docs.table import NOT_RUN, TABLE, choose

TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_in_a_block_is_run_or_has_a_reason(page: Path) -> None:
    missing = [command for command in commands(TEXTS[page]) if command not in TABLE and command not in NOT_RUN]
    assert not missing, f"{page.name}: run these in tests/docs/table.py, or say why not: {missing}"


def test_every_command_that_is_run_is_on_a_page() -> None:
    known = {command for text in TEXTS.values() for command in (*commands(text), *inline_commands(text))}
    assert {*TABLE, *NOT_RUN} - known == set()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("```sh\nmake wheel && x   # why\n\n# all\n$ make test\n```\n", ["make wheel && x", "make test"]),
        ("And:\n\n    python -m ci plan\n    nothing\n", ["python -m ci plan"]),
        ("```sh\npip install \\\n  x#egg=y  # really\n```\n", ["pip install x#egg=y"]),
        ("```sh\nobscure thing\n```\n", ["not understood: obscure thing"]),
        ("```\nmake it\n```\n", []),
    ],
    ids=["fenced", "indented", "hash", "unknown", "unlabelled"],
)
def test_the_collector(text: str, found: list[str]) -> None:
    assert commands(text) == found


@pytest.mark.slow
@pytest.mark.parametrize(("command", "how"), choose(Run, compiles=False))
def test_it_does_what_the_page_says(command: str, how: Run, place: Place) -> None:
    place.follow(command, how)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "how"), choose(Serve, compiles=False))
def test_it_serves(command: str, how: Serve, place: Place) -> None:
    for line in how.before:
        code, said = place.type(line)
        assert code == 0, said
    with place.popen(f"exec {command} --port 0") as server:
        assert server.stdout is not None
        said, port = "", None
        for line in server.stdout:
            said += line
            if found := re.match(r"http://[^\s/]*?:(\d+)$", line):
                port = found[1]
                break
        assert port is not None, said
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=60) as answer:
                assert answer.status == 200
            if "--token-file" in command:
                with pytest.raises(urllib.error.HTTPError, match="401"):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/simple/", timeout=60)
        finally:
            server.send_signal(signal.SIGTERM)
            server.stdout.read()
    assert server.returncode == 0
