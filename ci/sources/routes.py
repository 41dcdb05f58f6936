"""The routes by which sources come. Each fills an empty folder with a checkout's layout, or says why it cannot."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ci.cache.archive import unpack_tar
from ci.index import Wanted
from ci.process import execute
from ci.settings import Settings
from ci.sources.lock import LockedTree, Repository, SourceLock
from flash_attn3_sm121.errors import SourceError

CUTLASS = "csrc/cutlass"  # where upstream has CUTLASS as a submodule


@dataclass(frozen=True, kw_only=True)
class Route:
    """A way to get sources; `fill` raises FlashAttn3Error with the reason where it cannot."""

    name: str
    fill: Callable[[SourceLock, Path, Settings], None]


def copy_checkout(source: Path, lock: SourceLock, into: Path) -> None:
    """Copy the locked files of a local checkout that was checked already."""
    for tree in lock.trees:
        for entry in tree.files:
            target = into / tree.path / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / tree.path / entry.path, target)


def from_sdist(lock: SourceLock, into: Path, settings: Settings) -> None:
    """Unpack the trees from the source distribution that carries them."""
    from ci.index.pages import download_file  # loads requests: only where something is really fetched

    sdist = lock.sdist
    if sdist is None:
        raise SourceError("this lock names no source distribution")
    wanted = Wanted(project=sdist.project, filename=sdist.filename, sha256=sdist.sha256)
    top = sdist.filename.removesuffix(".tar.gz")
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=f"{into.name}.") as folder:
        file = download_file(wanted, Path(folder), settings)
        unpack_tar(file, f"{top}/{sdist.prefix}", [tree.path for tree in lock.trees], into)


def from_git(lock: SourceLock, into: Path, settings: Settings) -> None:
    """Fetch the two pinned commits, without history, and take the trees from them."""
    if settings.offline:
        raise SourceError("offline: git was not asked")
    _checkout(lock.upstream, lock.hopper, into, settings, root="")
    _checkout(lock.cutlass, lock.cutlass_include, into, settings, root=f"{CUTLASS}/")


def _checkout(repository: Repository, tree: LockedTree, into: Path, settings: Settings, *, root: str) -> None:
    if repository.commit is None:
        raise SourceError(f"this lock names no commit of {repository.url}")
    if shutil.which("git") is None:
        raise SourceError("git is not installed")
    inside = tree.path.removeprefix(root)
    clone = into / ".clone"
    clone.mkdir(parents=True)
    # A user's git settings must not change what is checked out, and nobody is there to type a password.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_DIR")}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "GIT_HTTP_LOW_SPEED_LIMIT": "1000", "GIT_HTTP_LOW_SPEED_TIME": "60"}
    git = ["git", "-c", "core.autocrlf=false", "-c", "core.fileMode=true", "-c", "core.symlinks=true"]
    for arguments in (
        ["init", "--quiet", "."],
        ["fetch", "--quiet", "--depth=1", repository.url, repository.commit],
        ["checkout", "--quiet", "FETCH_HEAD", "--", inside],
    ):
        done = execute([*git, *arguments], narrate=settings.narrate, cwd=clone, env=environment)
        if done.returncode != 0:
            raise SourceError(
                f"git {arguments[0]} of {repository.url} failed ({done.returncode}): {done.stderr.strip()}"
            )
    target = into / tree.path
    target.parent.mkdir(parents=True, exist_ok=True)
    (clone / inside).rename(target)
    shutil.rmtree(clone)


ROUTES = (Route(name="sdist", fill=from_sdist), Route(name="git", fill=from_git))
