"""`python -m ci lock`: make a lock of one's own from a checkout, or check one."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ci.process import execute
from ci.sources.lock import DEFAULT_LOCK, LockedTree, Repository, SourceLock, read_lock, write_lock
from ci.sources.routes import CUTLASS
from ci.sources.treeid import scan, tree_id
from flash_attn3_sm121.console import Narrator
from flash_attn3_sm121.errors import SourceError, UsageError


def configure_lock(parser: argparse.ArgumentParser) -> None:
    source = os.environ.get("FA3_SOURCE")
    parser.add_argument(
        "--source",
        type=Path,
        default=Path(source) if source else None,
        help="the flash-attention checkout to pin, submodules included (default: $FA3_SOURCE)",
    )
    parser.add_argument("--output", type=Path, help="where to write the lock (its manifests go beside it)")
    parser.add_argument("--check", type=Path, metavar="LOCK", help="check a lock against its manifests, write nothing")


def do_lock(args: argparse.Namespace) -> int:
    if args.check is not None:
        lock = read_lock(args.check)
        sys.stdout.write(f"{args.check}: good: hopper {lock.hopper.id}, cutlass include {lock.cutlass_include.id}\n")
        return 0
    if args.source is None or args.output is None:
        raise UsageError("nothing to do", hint="python -m ci lock --source DIR --output own-lock.json")
    if args.output.resolve() == DEFAULT_LOCK:
        raise UsageError(
            f"{args.output} is the repository's own pin", hint="write elsewhere, then build with --lock OTHER.json"
        )
    lock = pin(args.source, read_lock(), Narrator())
    for path in write_lock(args.output, lock):
        sys.stdout.write(f"{path}\n")
    return 0


def pin(source: Path, like: SourceLock, narrate: Narrator) -> SourceLock:
    """A lock of what lies in a checkout; addresses and licence texts are those of the lock that it is `like`."""
    trees = [_locked(source, tree.path) for tree in like.trees]
    return SourceLock(
        upstream=Repository(url=like.upstream.url, commit=_commit(source, "hopper", narrate)),
        cutlass=Repository(url=like.cutlass.url, commit=_commit(source / CUTLASS, "include", narrate)),
        hopper=trees[0],
        cutlass_include=trees[1],
        sdist=None,
        licenses=like.licenses,
    )


def _locked(source: Path, path: str) -> LockedTree:
    if not (source / path).is_dir():
        raise SourceError(
            f"{source} is no flash-attention checkout with submodules: no folder {path}",
            hint=f"git -C {source} submodule update --init {CUTLASS}",
        )
    files = tuple(scan(source / path))
    return LockedTree(path=path, id=tree_id(files), files=files)


def _commit(folder: Path, path: str, narrate: Narrator) -> str | None:
    """The commit that is checked out; None where `path` was edited since, or there is no repository."""
    if not (folder / ".git").exists():
        return None
    git = ["git", "-C", str(folder)]
    changes = execute([*git, "status", "--porcelain", "--", path], narrate=narrate)
    head = execute([*git, "rev-parse", "HEAD"], narrate=narrate)
    if changes.returncode != 0 or head.returncode != 0:
        # A copied checkout whose .git points nowhere: the trees can be pinned all the same.
        narrate.note(f"no commit is named: git cannot read {folder}: {(changes.stderr or head.stderr).strip()}")
        return None
    return None if changes.stdout.strip() else head.stdout.strip()
