"""The sources as they are compiled: upstream's two trees with our edits applied, and `csrc/` beside them.

    hopper/    cutlass/include/    csrc/

An entry of the content cache, named by the trees, the edit list and our own sources; read-only and shared by builds.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ci import ROOT
from ci.cache.folders import make_read_only
from ci.settings import Settings
from ci.sources import SourceTree, history, patch
from ci.sources.patches import EDITS

_OWN_SUFFIXES = (".h", ".hpp", ".cuh", ".cu", ".cpp")


@dataclass(frozen=True, kw_only=True)
class Edited:
    """A tree ready to compile. `digest` names what was done to the pristine one."""

    folder: Path
    digest: str
    edits: tuple[Mapping[str, str], ...]  # name and reason of each edit


def own_sources(root: Path = ROOT) -> tuple[Path, ...]:
    """Our own C++ sources."""
    return tuple(sorted(path for path in (root / "csrc").rglob("*") if path.suffix in _OWN_SUFFIXES))


def pristine(checkout: Path) -> Callable[[str], str]:
    """What reads upstream's own text of a file that an edit names, in a folder laid out as a checkout."""

    def read(name: str) -> str:
        return (checkout / (name if name.startswith("hopper/") else f"csrc/{name}")).read_text(encoding="utf-8")

    return read


def edited_tree(tree: SourceTree, settings: Settings, *, without: frozenset[str] = frozenset()) -> Edited:
    """The edited tree in the cache, made if it is not there. `without` withholds edits (to show what they are for).

    Raises:
        EditError: edits do not fit the sources (all are named), or there is none of a name in `without`.
    """
    needed, misfits = history.edits_for(tree.lock.upstream.commit, EDITS, pristine(tree.hopper.parent))
    patch.refuse_misfits(misfits, f"the sources {tree.lock.short}")
    chosen = patch.without(needed, without)
    total = hashlib.sha256(patch.digest(chosen).encode())
    for path in own_sources():
        total.update(f"{path.relative_to(ROOT).as_posix()}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    digest = total.hexdigest()

    def fill(work: Path) -> None:
        _fill(work, tree)
        patch.apply(work, chosen)
        make_read_only(work)

    key = "trees/" + hashlib.sha256(f"{tree.lock.key}\n{digest}".encode()).hexdigest()
    folder = settings.provide(key, f"sources with {len(chosen)} edits", fill)
    described = tuple({"name": edit.name, "file": edit.file, "why": edit.why} for edit in chosen)
    return Edited(folder=folder, digest=digest, edits=described)


def _fill(work: Path, tree: SourceTree) -> None:
    shutil.copytree(tree.hopper, work / "hopper", copy_function=_copy)
    shutil.copytree(tree.cutlass_include, work / "cutlass" / "include", copy_function=_copy)
    for path in own_sources():
        target = work / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(str(path), str(target))
    for folder in (work, *(path for path in work.rglob("*") if path.is_dir())):
        folder.chmod(0o755)


def _copy(source: str, target: str) -> None:
    """Contents alone: the pristine files are read-only, the copies must be writable for the edits."""
    shutil.copyfile(source, target)
