"""The source lock proves itself when read; a lock of one's own comes from a checkout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ci.__main__ import main
from ci.sources import fetch
from ci.sources.lock import DEFAULT_LOCK, read_lock, write_lock
from flash_attn3_sm121.errors import SourceError, UsageError
from tests.fakes.worlds import commit_all, git, make_world, settings_of


@pytest.fixture
def lock_file(tmp_path: Path) -> Path:
    shutil.copytree(DEFAULT_LOCK.parent, tmp_path / "lock")
    return tmp_path / "lock" / DEFAULT_LOCK.name


def test_the_repository_pins_what_it_says() -> None:
    lock = read_lock()
    assert lock.upstream.commit == "3effce828cd3c69cdeff96b418a6370d5d5a2430"
    assert lock.hopper.id == "0aa581eaabbb74b3727961096b4e0e82a0cfb6a9"
    assert lock.cutlass.commit == "b1d6e2c9b334dfa811e4183dfbd02419249e4b52"
    assert lock.cutlass_include.id == "ec214c0f51d21ad3a90049e765ab26903a1fa326"
    assert lock.sdist is not None
    assert lock.sdist.sha256 == "716bd9ffe61f46c2cc0536abf8b8c43ec594bea47a49394ea5cfa417e9de6a6f"
    assert {path.name for path in lock.licenses} == {"LICENSE.flash-attention", "LICENSE.cutlass"}
    assert "flash_api_stable.cpp" in {entry.path for entry in lock.hopper.files}


def test_a_lock_written_reads_back(tmp_path: Path) -> None:
    lock = read_lock()
    write_lock(tmp_path / "other.json", lock)
    again = read_lock(tmp_path / "other.json")
    assert (again.trees, again.upstream, again.sdist) == (lock.trees, lock.upstream, lock.sdist)


def test_a_manifest_changed_by_one_digit_is_refused(lock_file: Path) -> None:
    manifest = lock_file.parent / "lock.hopper.tree"
    text = manifest.read_text()
    manifest.write_text(text.replace("100644 2", "100644 3", 1))
    assert manifest.read_text() != text
    with pytest.raises(
        SourceError, match=r"trees\.hopper\.id: the lock says 0aa581e\w+, but lock\.hopper\.tree hashes"
    ):
        read_lock(lock_file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"schema": 2}, "schema: expected 1, found 2", id="schema"),
        pytest.param({"surprise": 1}, "unknown keys \\['surprise'\\]", id="unknown key"),
        pytest.param({"upstream": {"url": "u", "commit": "main"}}, "upstream.commit: expected", id="branch for commit"),
        pytest.param({"upstream": {"url": "", "commit": None}}, "upstream.url", id="no url"),
        pytest.param({"sdist": {}}, "sdist: missing keys", id="empty sdist"),
        pytest.param({"licenses": ["LICENSE.none"]}, "no file LICENSE.none", id="licence missing"),
        pytest.param({"trees": []}, "trees: expected a table, found list", id="list for table"),
    ],
)
def test_a_broken_lock_names_the_key(lock_file: Path, change: dict[str, object], message: str) -> None:
    lock_file.write_text(json.dumps(json.loads(lock_file.read_text()) | change))
    with pytest.raises(SourceError, match=message):
        read_lock(lock_file)


def test_no_lock_and_no_json_are_errors_of_ours(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot read the source lock"):
        read_lock(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SourceError, match="not JSON"):
        read_lock(tmp_path / "bad.json")


def test_another_pin_is_made_from_a_checkout_and_can_be_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(tmp_path)
    cutlass = commit_all(world.checkout / "csrc" / "cutlass")
    commit = commit_all(world.checkout)
    own = tmp_path / "own" / "lock.json"
    own.parent.mkdir()
    assert main(["lock", "--source", str(world.checkout), "--output", str(own)]) == 0
    assert main(["lock", "--check", str(own)]) == 0
    said = capsys.readouterr().out
    assert world.lock.hopper.id in said
    assert f"FlashAttention     3effce8 -> {commit[:7]}\n" in said
    assert "misfit           edit guard does not fit hopper/utils.h: anchor" in said
    assert "misfit           edit tiles: cannot read hopper/tile_size.h" in said
    lock = read_lock(own)
    assert (lock.upstream.commit, lock.cutlass.commit, lock.sdist) == (commit, cutlass, None)
    assert lock.hopper.id == git(world.checkout, "rev-parse", "HEAD:hopper")
    tree = fetch(lock, settings_of(world.cache, offline=True), source=world.checkout)
    assert tree.route == "checkout"


def test_an_edited_checkout_is_pinned_without_a_commit(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    commit_all(world.checkout)
    (world.checkout / "hopper" / "utils.h").write_text("edited\n")
    assert main(["lock", "--source", str(world.checkout), "--output", str(tmp_path / "own.json")]) == 0
    assert read_lock(tmp_path / "own.json").upstream.commit is None


def test_the_repositorys_own_pin_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["lock", "--source", str(tmp_path), "--output", str(DEFAULT_LOCK)])
    assert code == UsageError.exit_code
    assert "--lock OTHER.json" in capsys.readouterr().err
    assert main(["lock", "--source", str(tmp_path), "--pin", "default"]) == UsageError.exit_code
    assert main(["lock", "--source", str(tmp_path), "--pin", "../x"]) == UsageError.exit_code
    assert "--pin: expected lower case letters, digits and dots, found '../x'" in capsys.readouterr().err
