"""Tree ids against git itself; differences name the file."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ci.sources.treeid import Entry, blob_id, compare, format_manifest, parse_manifest, scan, tree_id
from flash_attn3_sm121.errors import SourceError
from tests.fakes.worlds import commit_all, git

NAMES = st.text(alphabet="ab.-0Z_é ", min_size=1, max_size=4).filter(
    lambda name: name not in {".", ".."} and name == name.strip() and not name.lower().startswith(".")
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


def fill(root: Path, files: dict[str, tuple[bytes, bool]]) -> None:
    root.mkdir()
    for name, (content, executable) in files.items():
        path = root / name
        if any(parent.is_file() for parent in path.parents) or path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o755 if executable else 0o644)


def test_equal_to_git_on_a_tree_with_every_kind_of_entry(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    # "a.b", "a/" and "a-b" tell git's own order (a folder sorts as if it ended in a slash) from a plain one
    fill(root, {"a/x": (b"1", False), "a.b": (b"2", True), "a-b": (b"", False), "z/y/w.h": (b"\0\xff\r\n", False)})
    (root / "link").symlink_to("a/x")
    commit_all(root)
    assert tree_id(scan(root)) == git(root, "rev-parse", "HEAD^{tree}")
    listed = git(root, "ls-tree", "-r", "HEAD").replace("\t", " ").replace(" blob ", " ")
    assert format_manifest(scan(root)).splitlines() == sorted(
        listed.splitlines(), key=lambda line: line.split(" ", 2)[2]
    )


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(files=st.dictionaries(PATHS, st.tuples(st.binary(max_size=8), st.booleans()), min_size=1, max_size=6))
def test_equal_to_git_on_any_tree(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, tuple[bytes, bool]]
) -> None:
    root = tmp_path_factory.mktemp("git") / "tree"
    fill(root, files)
    commit_all(root)
    assert tree_id(scan(root)) == git(root, "rev-parse", "HEAD^{tree}")


def test_blob_id_is_that_of_git_hash_object() -> None:
    for content in (b"", b"x", b"\r\n" * 70000):
        done = subprocess.run(["git", "hash-object", "--stdin"], input=content, capture_output=True, check=True)
        assert blob_id(content) == done.stdout.decode().strip()


def test_a_manifest_reads_back() -> None:
    entries = (Entry(path="a b/c", mode="100755", blob="0" * 40), Entry(path="d", mode="120000", blob="f" * 40))
    assert parse_manifest(format_manifest(entries), origin="m") == entries


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("100644 " + "0" * 40 + " ../x", id="leaves the tree"),
        pytest.param("100644 " + "0" * 40 + " /x", id="absolute"),
        pytest.param("100664 " + "0" * 40 + " x", id="no git mode"),
        pytest.param("100644 " + "0" * 39 + " x", id="short blob id"),
        pytest.param("", id="empty"),
    ],
)
def test_a_bad_manifest_line_is_named(line: str) -> None:
    with pytest.raises(SourceError, match="m, line 2"):
        parse_manifest(f"100644 {'0' * 40} good\n{line}\n", origin="m")


def test_differences_are_told_apart_and_named() -> None:
    def entry(path: str, blob: str = "0", mode: str = "100644") -> Entry:
        return Entry(path=path, mode=mode, blob=blob * 40)

    found = compare(
        [entry("same"), entry("bytes"), entry("mode"), entry("gone")],
        [entry("same"), entry("bytes", "1"), entry("mode", mode="100755"), entry("new")],
    )
    assert (found.changed, found.mode_changed, found.missing, found.extra) == (
        ("bytes",),
        ("mode",),
        ("gone",),
        ("new",),
    )
    assert str(found) == "changed: bytes; executable bit differs: mode; missing: gone; extra: new"
    assert not compare([entry("same")], [entry("same")])


def test_what_python_leaves_behind_is_no_difference(tmp_path: Path) -> None:
    fill(tmp_path / "t", {"a.py": (b"1", False)})
    before = tree_id(scan(tmp_path / "t"))
    fill(tmp_path / "t" / "__pycache__", {"a.cpython-311.pyc": (b"2", False)})
    assert tree_id(scan(tmp_path / "t")) == before
    (tmp_path / "t" / "b.py").write_bytes(b"")
    assert tree_id(scan(tmp_path / "t")) != before


@pytest.mark.parametrize("paths", [("a", "a/b"), ("a", "a")], ids=["file and folder", "twice"])
def test_contradicting_entries_are_refused(paths: tuple[str, str]) -> None:
    with pytest.raises(SourceError):
        tree_id([Entry(path=path, mode="100644", blob="0" * 40) for path in paths])
