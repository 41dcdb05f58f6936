"""The pins of this repository: found by name or commit; all edits fit the sources of each, where these are at hand."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ci.__main__ import main
from ci.cache.folders import cache_root
from ci.commands import common, options
from ci.sources import fetch, history
from ci.sources import lock as locks
from ci.sources.lock import DEFAULT_LOCK, find_pin, lock_of, mismatch, pins, read_lock
from ci.sources.patched import pristine
from ci.sources.patches import EDITS
from ci.verify import schemas
from flash_attn3_sm121.errors import SourceError, ToolchainError, UsageError
from tests.fakes.worlds import commit_all, make_world, settings_of


def test_each_pin_is_a_commit_of_the_history() -> None:
    commits = {name: read_lock(path).upstream.commit or "" for name, path in pins().items()}
    assert {name: commit[:8] for name, commit in commits.items()} == {
        "default": "3effce82",
        "3.0.0": "e2743ab5",
        "head": "0251105a",
    }
    assert all(history.position(commit) is not None for commit in commits.values())
    assert [name for name, path in pins().items() if read_lock(path).sdist] == ["default"]


@pytest.mark.parametrize("text", ["3.0.0", "e2743ab", "e2743ab5b3803bb672b16437ba98a3b1d4576c50"])
def test_a_pin_is_found_by_its_name_or_commit(text: str) -> None:
    assert find_pin(text).name == "lock-3.0.0.json"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("hed", "unknown pin 'hed'; did you mean head?", id="near a name"),
        pytest.param("3.0", "unknown pin '3.0'; did you mean 3.0.0?", id="short"),
        pytest.param("0251", "unknown pin '0251'\n", id="too few digits"),
        pytest.param("../lock", "unknown pin '../lock'", id="no path"),
    ],
)
def test_an_unknown_pin_is_named_with_those_that_there_are(
    text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--pin", text]) == UsageError.exit_code
    error = capsys.readouterr().err
    assert said in error
    assert "pins: default (3effce8), 3.0.0 (e2743ab), head (0251105); a lock of your own: --lock FILE" in error


def test_the_plan_names_the_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--profile", "smoke", "--archs", "12.1", "--pin", "head"]) == 0
    assert capsys.readouterr().out.startswith("sources 0251105 (hopper 3e3af0e, cutlass 3c43ce5)\n")


def test_the_environment_names_a_pin_for_pip() -> None:
    assert options.from_environment({}).lock == DEFAULT_LOCK
    assert options.from_environment({"FLASH_ATTN3_PIN": "head"}).lock == find_pin("head")
    with pytest.raises(UsageError, match="unknown pin 'tail'"):
        options.from_environment({"FLASH_ATTN3_PIN": "tail"})


def test_artifacts_are_assembled_with_the_pin_that_made_them() -> None:
    assert lock_of(read_lock(find_pin("3.0.0")).key) == find_pin("3.0.0")
    assert lock_of("of no pin") == DEFAULT_LOCK


def checkout_of(name: str) -> Path:
    """A folder with the sources of a pin."""
    lock = read_lock(find_pin(name))
    given = Path(os.environ.get("FA3_SOURCE") or "/nonexistent")
    for place in (given, cache_root() / "sources" / lock.key):
        if not any(mismatch(place, tree) for tree in lock.trees):
            return place
    pytest.skip(
        f"the sources of pin {name} are neither in FA3_SOURCE nor in the cache: python -m ci fetch --pin {name}"
    )


@pytest.mark.parametrize("name", list(pins()))
def test_all_edits_fit_and_the_ops_are_those_that_are_called(name: str) -> None:
    place, commit = checkout_of(name), read_lock(find_pin(name)).upstream.commit
    needed, misfits = history.edits_for(commit, EDITS, pristine(place))
    assert misfits == []
    assert history.edits_for(None, EDITS, pristine(place)) == (needed, [])
    api = (place / "hopper" / "flash_api_stable.cpp").read_text(encoding="utf-8")
    schemas.check_interface(schemas.from_source(api, origin=name), origin=name)
    assert common.needed_cuda((place / "hopper" / "setup.py").read_text(encoding="utf-8")) == (12, 3)


def test_a_cuda_that_is_too_old_is_refused_before_anything_is_compiled(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    tree = fetch(world.lock, settings_of(world.cache, offline=True), source=world.checkout)
    common.check_cuda(tree, (12, 3))
    with pytest.raises(ToolchainError, match=r"FlashAttention 1111111 needs CUDA 12\.3 or newer, and this is 12\.2"):
        common.check_cuda(tree, (12, 2))


@pytest.fixture
def own_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the repository's pins, to add to."""
    shutil.copytree(DEFAULT_LOCK.parent, tmp_path / "pins")
    monkeypatch.setattr(locks, "PINS", tmp_path / "pins")


@pytest.mark.usefixtures("own_pins")
def test_a_pin_is_added_and_raised_by_one_command_that_says_what_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(tmp_path)
    commits = []
    for text in ("int one();\n", "int two();\n"):
        (world.checkout / "hopper" / "utils.h").write_text(text)
        commits.append(commit_all(world.checkout)[:7])
        assert main(["lock", "--source", str(world.checkout), "--pin", "next"]) == 0
    said = capsys.readouterr().out
    assert f"FlashAttention     3effce8 -> {commits[0]}\n" in said
    assert f"FlashAttention     {commits[0]} -> {commits[1]}\n" in said
    assert "sources            utils.h\n" in said
    assert "commit in HISTORY  no: chosen by fit\n" in said
    assert read_lock(find_pin("next")).short == commits[1]
    with pytest.raises(SourceError, match=r"is not what the lock pins[\s\S]*it is the pin next: --pin next"):
        fetch(read_lock(), settings_of(world.cache, offline=True), source=world.checkout)
