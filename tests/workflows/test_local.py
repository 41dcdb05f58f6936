"""Running a workflow's steps here: expressions, order, matrices, outputs, artifacts, failures."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ci.__main__ import main
from ci.console import Narrator
from ci.local import actions
from ci.local.actions import Place
from ci.local.expressions import evaluate, expand
from ci.local.runner import LocalRun
from ci.local.workflow import read_workflow
from flash_attn3_sm121.errors import UsageError
from tests.fakes.worlds import git

CONTEXT: dict[str, Any] = {"matrix": {"name": "a", "n": 3}, "inputs": {"x": "", "on": True}, "steps": {}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("matrix.name", "a"),
        ("matrix.n == 3", True),
        ("matrix.n != 3 || 'it''s'", "it's"),
        ("inputs.x || 'all'", "all"),
        ("inputs.on && !inputs.x", True),
        ("steps.none.outputs.gone", None),
        ("fromJSON('[1, 2]')", [1, 2]),
        ("startsWith(matrix.name, 'A') && (false || null || 1.5)", 1.5),
        ("always()", True),
    ],
)
def test_expressions(text: str, value: object) -> None:
    assert evaluate(text, CONTEXT) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("secret.x", "unknown context secret"),
        ("toJSON(matrix)", "unknown function"),
        ("matrix.n +", "cannot read"),
        ("'a' 'b'", "unexpected 'b'"),
        ("(true", r"expected '\)'"),
        ("true ||", "a value is missing"),
    ],
)
def test_what_is_not_known_is_an_error(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        evaluate(text, CONTEXT)


def test_holes_keep_types_alone_and_become_text_among_text() -> None:
    found = expand({"a": "${{ matrix.n }}", "b": ["x-${{ matrix.n }}-${{ inputs.on }}${{ steps.no.x }}"]}, CONTEXT)
    assert found == {"a": 3, "b": ["x-3-true"]}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., LocalRun]:
    """Run a workflow text in a small repository of its own."""
    tree = tmp_path / "tree"
    tree.mkdir()
    git(tree, "init", "--quiet", ".")
    (tree / ".gitignore").write_text("ignored\n", encoding="utf-8")
    (tree / "tracked").write_text("t", encoding="utf-8")
    (tree / "ignored").write_text("i", encoding="utf-8")

    def go(text: str, *, inputs: dict[str, str] | None = None, **options: Any) -> LocalRun:
        path = tmp_path / "w.yml"
        path.write_text(text, encoding="utf-8")
        made = LocalRun(
            workflow=read_workflow(path, inputs or {}),
            tree=tree,
            folder=tmp_path / "run",
            narrate=Narrator(stream=io.StringIO()),
            **options,
        )
        made.run()
        return made

    return go


WHOLE = """
on:
  workflow_dispatch:
    inputs:
      word: {type: string, default: hello}
env: {WORD: "${{ inputs.word }}"}
jobs:
  last:
    needs: [made]
    runs-on: RUNNER
    steps:
      - uses: actions/download-artifact@v1
        with: {pattern: part-*, path: got, merge-multiple: true}
      - run: test "$(cat got/a.txt got/b.txt)" = "$(printf 'hello\\nhello')"
      - uses: actions/deploy-pages@v1
  first:
    runs-on: RUNNER
    outputs: {list: "${{ steps.l.outputs.list }}"}
    steps:
      - uses: actions/checkout@v1
      - run: test -f tracked && ! test -e ignored && ! test -e other && touch other
      - id: l
        run: echo 'list={"include":[{"name":"a"},{"name":"b"}]}' >> "$GITHUB_OUTPUT"
      - run: echo LATER=1 >> "$GITHUB_ENV"
      - run: test "$LATER" = 1
      - if: inputs.word == 'bye'
        run: exit 1
  made:
    needs: first
    runs-on: RUNNER
    strategy: {matrix: "${{ fromJSON(needs.first.outputs.list) }}"}
    steps:
      - run: test ! -e other && mkdir out && echo "$WORD" > "out/$NAME.txt"
        env: {NAME: "${{ matrix.name }}"}
      - uses: actions/upload-artifact@v1
        with: {name: "part-${{ matrix.name }}", path: out/*.txt}
  elsewhere:
    runs-on: STRANGER
    steps: [{run: exit 1}]
"""


def _for_this_machine(text: str) -> str:
    import platform

    here, there = ("x-arm", "x") if platform.machine() == "aarch64" else ("x", "x-arm")
    return text.replace("RUNNER", here).replace("STRANGER", there)


def test_a_whole_workflow(run: Callable[..., LocalRun]) -> None:
    made = run(_for_this_machine(WHOLE))
    assert not made.failed, made.summary()
    assert [line.job for line in made.lines if not line.step] == ["elsewhere"]
    away = [line.about for line in made.lines if line.state == "not here"]
    assert len(away) == 3 and any("talks to GitHub" in text for text in away)
    assert made.summary().endswith("not here; passed\n") and "made (b)" in made.summary()


def test_a_failure_is_shown_and_stops_what_needs_it(run: Callable[..., LocalRun]) -> None:
    made = run(_for_this_machine(WHOLE), inputs={"word": "bye"})
    assert made.failed == {"first", "made", "last"}
    summary = made.summary()
    assert "FAILED" in summary and "needs first" in summary and "exit code 1" in summary


def test_a_failing_pipe_fails_its_step(run: Callable[..., LocalRun]) -> None:
    made = run(_for_this_machine("jobs: {a: {runs-on: RUNNER, steps: [{run: 'false | cat'}]}}"))
    assert made.failed == {"a"}


def test_cross_compiling_jobs_run_on_any_machine(run: Callable[..., LocalRun]) -> None:
    made = run(_for_this_machine(WHOLE), cross=frozenset({"elsewhere"}), jobs=frozenset({"elsewhere"}))
    assert made.failed == {"elsewhere"} and {line.job for line in made.lines} == {"elsewhere"}


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("uses: someone/action@v1", "no stand-in for someone/action"),
        ("{uses: actions/download-artifact@v1, with: {name: gone}}", "no gone"),
        (
            "{uses: actions/upload-artifact@v1, with: {name: x, path: gone, if-no-files-found: error}}",
            "nothing matches",
        ),
        ("{run: 'echo a<<EOF >> \"$GITHUB_ENV\"'}", "expected name=value"),
        ("{run: 'true', shell: pwsh}", "only bash"),
    ],
)
def test_steps_that_cannot_be_done_fail(run: Callable[..., LocalRun], step: str, words: str) -> None:
    step = step if step.startswith("{") else f"{{{step}}}"
    made = run(_for_this_machine(f"jobs: {{a: {{runs-on: RUNNER, steps: [{step}]}}}}"))
    assert made.failed == {"a"} and words in made.lines[-1].about


def test_artifact_paths_are_relative_to_their_common_folder(tmp_path: Path) -> None:
    place = Place(workspace=tmp_path / "w", temp=tmp_path / "t", artifacts=tmp_path / "a")
    for name in ("build/x/one.json", "build/y/two.json", "single"):
        (place.workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (place.workspace / name).write_text(name, encoding="utf-8")
    for name, path in (("tree", "build"), ("glob", "build/*/*.json"), ("file", "single")):
        actions.perform("actions/upload-artifact@v1", {"name": name, "path": path}, place)
    found = sorted(str(p.relative_to(place.artifacts)) for p in place.artifacts.rglob("*") if p.is_file())
    assert found == ["file/single", "glob/x/one.json", "glob/y/two.json", "tree/x/one.json", "tree/y/two.json"]
    with pytest.raises(UsageError, match="there already"):
        actions.perform("actions/upload-artifact@v1", {"name": "tree", "path": "build"}, place)
    actions.perform("actions/download-artifact@v1", {"pattern": "t*", "path": "back"}, place)
    assert (place.workspace / "back/tree/x/one.json").is_file()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "not a workflow"),
        ("jobs: {a: {needs: b}, b: {needs: a}}", "need each other"),
        ("a: [", "cannot be read"),
    ],
)
def test_bad_workflow_files(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "w.yml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=words):
        read_workflow(tmp_path / "w.yml", {})


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    ours = str(Path(__file__).parents[2] / ".github" / "workflows" / "wheels.yml")
    assert main(["local", ours, "--list"]) == 0
    assert capsys.readouterr().out.split() == ["plan", "build", "assemble", "native", "emulated", "index"]
    assert main(["local", ours, "--input", "colour=red"]) == UsageError.exit_code
    assert main(["local", ours, "--input", "red"]) == UsageError.exit_code
    assert main(["local", ours, "--job", "gone"]) == UsageError.exit_code
