"""The content cache: one folder outside every clone, whose entries are named by what they hold.

An entry is made in a folder beside its place and renamed, under a lock that dies with its holder: a reader sees a
whole entry or none, two runs never make the same one twice, and `kill -9` leaves a folder that the next run removes.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from flash_attn3_sm121.files import hash_file, put_folder

FOLDER = "flash-attn3-sm121"


def cache_root() -> Path:
    """`FA3_CACHE`, else the system's cache folder (`$XDG_CACHE_HOME`, `~/.cache`); the folder is not created here."""
    if asked := os.environ.get("FA3_CACHE"):
        return Path(asked).expanduser().absolute()
    return platformdirs.user_cache_path(FOLDER, appauthor=False)


@contextmanager
def locked(cache: Path, key: str, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the cache's lock for `key`. `waiting` is called once if another process holds it."""
    folder = cache / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{key.replace('/', '-')}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if waiting is not None:
            waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def file_sha256(path: Path) -> str:
    """The sha256 of a file's contents."""
    return hash_file(path)[0]


@contextmanager
def making(cache: Path, key: str) -> Iterator[Path]:
    """An empty folder to make entry `key` in, renamed to `cache/key` when the block ends well, else removed.

    Call with the lock of `key` held: what a killed run left of the same entry is removed first, and an entry that is
    already there (a damaged one) is replaced.
    """
    final = cache / key
    for left in final.parent.glob(f".{final.name}.*"):
        remove_tree(left)
    with put_folder(final) as work:
        yield work
        if final.exists():
            remove_tree(final)


def make_read_only(root: Path) -> None:
    """Take write permission from every file below `root`; folders stay, so that copies of them can be written to."""
    for folder, _, files in os.walk(root):
        for name in files:
            path = Path(folder) / name
            if not path.is_symlink():
                path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)


def remove_tree(root: Path) -> None:
    """Remove a folder, even one in which folders were made read-only, or of which somebody else removes files, as a
    compiler that was stopped does."""
    while root.exists():
        with suppress(FileNotFoundError):
            root.chmod(0o755)
            for folder, names, _ in os.walk(root):
                for name in names:
                    path = Path(folder) / name
                    if not path.is_symlink():
                        path.chmod(0o755)
            shutil.rmtree(root)
