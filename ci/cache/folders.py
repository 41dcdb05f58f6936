"""The content cache: one folder outside every clone, whose entries are named by what they hold.

An entry is made in a private folder and renamed into place, under a lock that dies with its holder: a reader sees a
whole entry or none, two runs never make the same one twice, and `kill -9` leaves only litter that the next run sweeps.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

FOLDER = "flash-attn3-sm121"


def cache_root(environ: Mapping[str, str] | None = None) -> Path:
    """`FA3_CACHE`, else the XDG cache folder, else `~/.cache`; the folder is not created here."""
    env = os.environ if environ is None else environ
    if env.get("FA3_CACHE"):
        return Path(env["FA3_CACHE"]).expanduser().absolute()
    if env.get("XDG_CACHE_HOME"):
        return Path(env["XDG_CACHE_HOME"]).expanduser().absolute() / FOLDER
    home = env.get("HOME")
    base = Path(home) if home else Path.home()
    return base / ".cache" / FOLDER


@contextmanager
def locked(cache: Path, key: str, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the cache's lock for `key`. `waiting` is called once if another process holds it."""
    folder = cache / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{key.replace('/', '-')}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def making(cache: Path, key: str) -> Iterator[Path]:
    """An empty folder to make entry `key` in, renamed to `cache/key` when the block ends well, else removed.

    Call with the lock of `key` held: what a killed run left of the same entry is swept first, and an entry that is
    already there (a damaged one) is replaced.
    """
    scratch = cache / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    prefix = key.replace("/", "-") + "."
    for litter in scratch.glob(prefix + "*"):
        remove_tree(litter)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=scratch))
    try:
        yield work
        final = cache / key
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            old = scratch / f"{prefix}old"
            final.rename(old)
            work.rename(final)
            remove_tree(old)
        else:
            work.rename(final)
    finally:
        if work.exists():
            remove_tree(work)


def make_read_only(root: Path) -> None:
    """Take write permission from every file below `root`; folders stay, so that copies of them can be written to."""
    for folder, _, files in os.walk(root):
        for name in files:
            path = Path(folder) / name
            if not path.is_symlink():
                path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)


def remove_tree(root: Path) -> None:
    """Remove a folder, even one in which folders were made read-only."""
    root.chmod(0o755)
    for folder, names, _ in os.walk(root):
        for name in names:
            path = Path(folder) / name
            if not path.is_symlink():
                path.chmod(0o755)
    shutil.rmtree(root)
