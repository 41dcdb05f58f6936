"""Files and folders appear whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from flash_attn3_sm121.files import hash_file, put_file, put_folder


def test_a_file_is_replaced_whole_and_folders_are_made(tmp_path: Path) -> None:
    path = put_file(tmp_path / "a" / "b", "one")
    assert put_file(path, b"two") == path == tmp_path / "a" / "b"
    assert path.read_bytes() == b"two" and list(path.parent.iterdir()) == [path]
    assert hash_file(path) == (hashlib.sha256(b"two").hexdigest(), 3)


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        put_file(tmp_path / "taken", "a folder is in its place")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_folder_is_there_when_it_is_full(tmp_path: Path) -> None:
    with put_folder(tmp_path / "x" / "folder") as new:
        (new / "file").touch()
        assert not (tmp_path / "x" / "folder").exists()
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["folder"]


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), put_folder(tmp_path / "folder") as new:
        (new / "file").write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_makers_wins(tmp_path: Path) -> None:
    with put_folder(tmp_path / "folder") as slow:
        (slow / "file").write_text("late")
        with put_folder(tmp_path / "folder") as quick:
            (quick / "file").write_text("first")
    assert (tmp_path / "folder" / "file").read_text() == "first" and len(list(tmp_path.iterdir())) == 1
