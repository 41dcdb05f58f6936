"""Every command of every page is run here, or run elsewhere, or marked with the reason why it is not."""

from __future__ import annotations

import ast
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ci.cache.folders import cache_root
from tests.docs.kinds import Elsewhere, NotRun, Run, Serve
from tests.docs.pages import PAGES, ROOT, command_of, commands, unlabelled_commands
from tests.docs.place import Place
from tests.docs.table import TABLE

FOUND = {page: commands(page.read_text(encoding="utf-8")) for page in PAGES}


def of_kind(kind: type) -> list[object]:
    """The table's commands of a kind, with the markers that they ask for."""
    chosen = [(command, deal) for command, deal in TABLE.items() if isinstance(deal, kind)]
    marks = [[getattr(pytest.mark, mark) for mark in sorted(getattr(deal, "marks", ()))] for _, deal in chosen]
    return [
        pytest.param(command, deal, id=command[:60], marks=mark)
        for (command, deal), mark in zip(chosen, marks, strict=True)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_is_in_the_table(page: Path) -> None:
    missing = [command for command in FOUND[page] if command not in TABLE]
    assert not missing, f"{page.name}: run these in tests/docs/table.py, or say why not: {missing}"
    hidden = unlabelled_commands(page.read_text(encoding="utf-8"))
    assert not hidden, f"{page.name}: a block of commands begins with ```sh: {hidden}"


def test_every_entry_of_the_table_is_on_a_page() -> None:
    known = {command for found in FOUND.values() for command in found}
    assert set(TABLE) - known == set()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("```sh\nmake wheel && x   # why\n\n# all\n$ make test\n```\n", ["make wheel && x", "make test"]),
        ("Type `make help` or `hub serve`, see `ci/`.\n", ["make help"]),
        ("And:\n\n    python -m ci plan\n    nothing\n", ["python -m ci plan"]),
        ("`A=1 B_2=x pip install .` and `pipe`", ["A=1 B_2=x pip install ."]),
        ("```sh\nobscure thing\n```\n", ["not understood: obscure thing"]),
        ("```\nmake it\n```\n", []),
        ("`make a`, `make a`", ["make a"]),
    ],
    ids=["fenced", "inline", "indented", "variables", "unknown", "unlabelled", "once"],
)
def test_the_collector(text: str, found: list[str]) -> None:
    assert commands(text) == found


def test_a_hash_inside_a_word_is_no_comment() -> None:
    assert command_of("pip install x#egg=y  # really") == "pip install x#egg=y"
    assert unlabelled_commands("```\nmake it\n```\n") == ["make it"]


@pytest.mark.parametrize(("command", "deal"), of_kind(NotRun))
def test_a_reason_is_a_reason(command: str, deal: NotRun) -> None:
    assert len(deal.why) > 10
    if deal.why == "names the program":
        assert len(command.split()) <= 3, "a whole command is run, or has a reason of its own"


@pytest.mark.parametrize(("command", "deal"), of_kind(Elsewhere))
def test_what_runs_it_exists(command: str, deal: Elsewhere) -> None:
    file, _, name = deal.at.partition("::")
    text = (ROOT / file).read_text(encoding="utf-8")
    if name:
        functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        (function,) = (node for node in functions if node.name == name)
        text = ast.get_source_segment(text, function) or ""
    assert deal.says in text, f"{deal.at} does not say {deal.says!r}"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    yield Place(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "deal"), of_kind(Run))
def test_it_does_what_the_page_says(command: str, deal: Run, place: Place) -> None:
    for name, text in deal.files.items():
        (place.clone / name).parent.mkdir(exist_ok=True)
        (place.clone / name).write_text(text, encoding="utf-8")
    environ = dict(deal.environ)
    if not deal.own_cache:
        environ["FA3_CACHE"] = str(cache_root())
    if any(" fa " in line for line in (command, *deal.before)):
        place.check_out_sources(cache_root())
    typed = command
    for word, instead in deal.puts.items():
        assert word in typed, f"{command}: no {word} to replace"
        typed = typed.replace(word, instead)
    lines = ["set -e", *deal.before, f"{typed} {deal.adds}".strip(), *deal.then]
    code, said = place.type("\n".join(lines), environ)
    assert code == 0, said
    assert re.search(deal.says, said), said


@pytest.mark.slow
@pytest.mark.parametrize(("command", "deal"), of_kind(Serve))
def test_it_serves(command: str, deal: Serve, place: Place) -> None:
    for line in deal.before:
        code, said = place.type(line)
        assert code == 0, said
    with place.popen(f"exec {command} --port 0") as server:
        assert server.stdout is not None
        said, port = "", None
        for line in server.stdout:
            said += line
            if found := re.search(r"http://[^\s/]*?:(\d+)", line):
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
