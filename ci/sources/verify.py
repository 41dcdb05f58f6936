"""The judgement every route must pass: a folder holds exactly the locked tree, or the files that differ are named."""

from __future__ import annotations

from pathlib import Path

from ci.sources.lock import LockedTree, SourceLock
from ci.sources.treeid import compare, scan, tree_id
from flash_attn3_sm121.errors import SourceError


def check_checkout(root: Path, lock: SourceLock) -> None:
    """Raise SourceError, naming the files, unless `root` holds both locked trees at their places."""
    problems = [problem for tree in lock.trees if (problem := mismatch(root, tree)) is not None]
    if problems:
        raise SourceError("; ".join(problems))


def mismatch(root: Path, tree: LockedTree) -> str | None:
    """Why `root/<tree.path>` is not the locked tree, or None."""
    folder = root / tree.path
    if not folder.is_dir():
        return f"{folder}: no such folder"
    found = scan(folder)
    difference = compare(tree.files, found)
    identity = tree_id(found)
    if not difference and identity == tree.id:
        return None
    return f"{folder}: expected git tree {tree.id}, found {identity}: {difference}"
