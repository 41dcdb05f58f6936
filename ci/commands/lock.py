"""`python -m ci lock`: pin a checkout, and say what that changes; or check a lock."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from ci.commands import common
from ci.process import execute
from ci.sources import history
from ci.sources.lock import DEFAULT_LOCK, LockedTree, Repository, SourceLock, pin_file, read_lock, write_lock
from ci.sources.patched import pristine
from ci.sources.patches import EDITS
from ci.sources.routes import CUTLASS
from ci.sources.treeid import compare, scan, tree_id
from ci.toolchain.installed import format_version
from ci.verify import schemas
from flash_attn3_sm121.call import schemas as call_schemas
from flash_attn3_sm121.console import Narrator, Table, show
from flash_attn3_sm121.errors import SourceError, UsageError

SUFFIXES = (".h", ".hpp", ".cpp", ".cu", ".cuh")  # of the files that can be compiled


def configure_lock(parser: argparse.ArgumentParser) -> None:
    source = os.environ.get("FA3_SOURCE")
    parser.add_argument(
        "--source",
        type=Path,
        default=Path(source) if source else None,
        help="the flash-attention checkout to pin, submodules included (default: $FA3_SOURCE)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--output", type=Path, help="where to write the lock (its manifests go beside it)")
    where.add_argument("--pin", metavar="NAME", help="make it the pin of that name, a new one or one to be raised")
    where.add_argument("--check", type=Path, metavar="LOCK", help="check a lock against its manifests, write nothing")


def do_lock(args: argparse.Namespace) -> int:
    if args.check is not None:
        lock = read_lock(args.check)
        sys.stdout.write(f"{args.check}: good: hopper {lock.hopper.id}, cutlass include {lock.cutlass_include.id}\n")
        return 0
    if args.pin and not re.fullmatch(r"[a-z0-9][a-z0-9.]*", args.pin):
        raise UsageError(f"--pin: expected lower case letters, digits and dots, found {args.pin!r}")
    output = pin_file(args.pin) if args.pin else args.output
    if args.source is None or output is None:
        raise UsageError("nothing to do", hint="python -m ci lock --source DIR --output own-lock.json")
    if output.resolve() == DEFAULT_LOCK:
        raise UsageError(
            f"{output} is the default pin, which a package registry must have: it is entered by hand",
            hint="--pin NAME for another pin, or --output OTHER.json and build with --lock OTHER.json",
        )
    earlier = read_lock(output) if output.exists() else read_lock()
    lock = pin(args.source, earlier)
    for path in write_lock(output, lock):
        sys.stdout.write(f"{path}\n")
    show(["", what_changed(earlier, lock, args.source)])
    return 0


def what_changed(earlier: SourceLock, lock: SourceLock, source: Path) -> Table:
    """The table of what changes between two locks: commits, files, edits that are needed or do not fit, the ops."""
    hopper = source / lock.hopper.path
    files = compare(earlier.hopper.files, lock.hopper.files)
    compiled = [path for path in (*files.changed, *files.extra, *files.missing) if path.endswith(SUFFIXES)]
    headers = compare(earlier.cutlass_include.files, lock.cutlass_include.files)
    cuda = common.needed_cuda((hopper / "setup.py").read_text(encoding="utf-8"))
    before = {edit.name for edit in history.edits_at(history.position(earlier.upstream.commit or "") or 0, EDITS)}
    edits, misfits = history.edits_for(lock.upstream.commit, EDITS, pristine(source))
    now = {edit.name for edit in edits}
    api = hopper / "flash_api_stable.cpp"
    declared = schemas.from_source(api.read_text(encoding="utf-8"), origin=api.name)
    rows = [
        ("FlashAttention", f"{earlier.short} -> {lock.short}"),
        ("CUTLASS", f"{(earlier.cutlass.commit or '?')[:7]} -> {(lock.cutlass.commit or '?')[:7]}"),
        ("CUDA", f"{format_version(cuda)} or newer" if cuda else "setup.py does not say"),
        ("sources", ", ".join(sorted(compiled)) or "the same"),
        ("CUTLASS's headers", f"{len(headers.changed)} changed, {len(headers.extra)} new, {len(headers.missing)} gone"),
        ("edits", f"{len(edits)} needed"),
        ("  not needed now", ", ".join(sorted(before - now)) or "none"),
        ("  needed as well", ", ".join(sorted(now - before)) or "none"),
        *(("  misfit", line) for line in misfits or ["none"]),
        *(("ops", line) for line in call_schemas.differences(declared) or ["as the Python interface calls them"]),
        (
            "commit in HISTORY",
            "yes" if history.position(lock.upstream.commit or "-") is not None else "no: chosen by fit",
        ),
    ]
    return Table(head=("what", "change"), rows=rows)


def pin(source: Path, like: SourceLock) -> SourceLock:
    """A lock of what lies in a checkout; addresses and licence texts are those of the lock that it is `like`."""
    trees = [_locked(source, tree.path) for tree in like.trees]
    return SourceLock(
        upstream=Repository(url=like.upstream.url, commit=_commit(source, "hopper")),
        cutlass=Repository(url=like.cutlass.url, commit=_commit(source / CUTLASS, "include")),
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


def _commit(folder: Path, path: str) -> str | None:
    """The commit that is checked out; None where `path` was edited since, or there is no repository."""
    if not (folder / ".git").exists():
        return None
    git = ["git", "-C", str(folder)]
    changes = execute([*git, "status", "--porcelain", "--", path])
    head = execute([*git, "rev-parse", "HEAD"])
    if changes.returncode != 0 or head.returncode != 0:
        # A copied checkout whose .git points nowhere: the trees can be pinned all the same.
        Narrator().note(f"no commit is named: git cannot read {folder}: {(changes.stderr or head.stderr).strip()}")
        return None
    return None if changes.stdout.strip() else head.stdout.strip()
