"""The commands of the documents do what the pages say: they are typed here, in a copy of the clone."""

from __future__ import annotations

import re
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from ci.cache.folders import cache_root
from tests.docs.kinds import Run, Serve
from tests.docs.pages import PAGES, ROOT, commands, inline_commands
from tests.docs.place import Place
from tests.docs.table import NOT_RUN, TABLE

TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}


def of_kind(kind: type) -> list[object]:
    """The table's commands of a kind, with the markers that they ask for."""
    return [
        pytest.param(command, how, id=command[:60], marks=[getattr(pytest.mark, mark) for mark in sorted(how.marks)])
        for command, how in TABLE.items()
        if isinstance(how, kind)
    ]


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


@pytest.fixture(scope="module")
def build_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("build") / "venv"


@pytest.fixture
def place(tmp_path: Path, build_venv: Path) -> Place:
    return Place(tmp_path, build_venv=build_venv)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "how"), of_kind(Run))
def test_it_does_what_the_page_says(command: str, how: Run, place: Place) -> None:
    for name, text in how.files.items():
        (place.clone / name).parent.mkdir(exist_ok=True)
        (place.clone / name).write_text(text, encoding="utf-8")
    environ = dict(how.environ)
    if not how.own_cache:
        environ["FA3_CACHE"] = str(cache_root())
    if any(" fa " in line for line in (command, *how.before)):
        place.check_out_sources(cache_root())
    typed = command
    for word, instead in how.puts.items():
        assert word in typed, f"{command}: no {word} to replace"
        typed = typed.replace(word, instead)
    lines = ["set -e", *how.before, f"{typed} {how.adds}".strip(), *how.then]
    code, said = place.type("\n".join(lines), environ)
    assert code == 0, said
    assert re.search(how.says, said), said


@pytest.mark.slow
@pytest.mark.parametrize(("command", "how"), of_kind(Serve))
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
