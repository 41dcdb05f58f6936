"""A copy of this clone's sources, for tests that build or change things in it."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path

from ci import ROOT

_NOWHERE = ("__pycache__", ".*_cache", ".hypothesis", "*.whl", "*.egg-info", "node_modules")
_NOT_AT_THE_TOP = (".git", ".venv*", "build")  # ci/build is a package


def copy_clone(target: Path, *, without: tuple[str, ...] = ()) -> None:
    """Copy the sources to `target`, without products, environments and the named entries of the top level."""

    def ignored(folder: str, names: list[str]) -> set[str]:
        patterns = _NOWHERE + (_NOT_AT_THE_TOP + without if Path(folder) == ROOT else ())
        return {name for name in names for pattern in patterns if fnmatch.fnmatch(name, pattern)}

    shutil.copytree(ROOT, target, ignore=ignored, symlinks=True)
