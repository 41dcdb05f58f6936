"""The folder that ninja runs in, with a folder a family in it. All names are relative: commands hold no path of this
machine but the tools'.

    build.ninja        what is compiled, kept until the next build takes the folder
    <family>/
      src, torch       links to the edited sources and torch's headers (shared entries of the content cache)
      units/           our generated files        keep/<unit>/  nvcc's intermediate files
      obj/             objects                    stubs/        what linking needs
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ci.cache.folders import remove_tree
from ci.plan.units import Unit
from flash_attn3_sm121.files import put_file


@dataclass(frozen=True, kw_only=True)
class WorkDir:
    """The paths inside one family's folder."""

    root: Path

    def unit_file(self, unit: Unit) -> Path:
        return self.root / "units" / unit.file

    def write(self, unit: Unit) -> None:
        put_file(self.unit_file(unit), unit.text)


@dataclass(frozen=True, kw_only=True)
class WorkFolder:
    """The folder of one build; two families have units of the same name, so each has its own folder in it."""

    root: Path
    sources: Path
    torch: Path

    def family(self, name: str) -> WorkDir:
        """The folder of a family, made at the first call."""
        made = WorkDir(root=self.root / name)
        if not made.root.exists():
            for folder in ("units", "keep", "obj", "stubs", "tmp"):
                (made.root / folder).mkdir(parents=True)
            (made.root / "src").symlink_to(self.sources.absolute())
            (made.root / "torch").symlink_to(self.torch.absolute())
        return made


@contextmanager
def work_folder(cache: Path, *, sources: Path, torch: Path) -> Iterator[WorkFolder]:
    """The first folder that no living build uses, emptied of what an earlier one left.

    There are few fixed names, and not a new one each time: compiler caches take the folder into their keys. The folder
    stays afterwards, so that ninja can be asked about the build; intermediate files and objects go.
    """
    parent = cache.absolute() / "work"
    parent.mkdir(parents=True, exist_ok=True)
    for index in itertools.count():
        lock = FileLock(parent / f"run.{index}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        root = parent / f"run.{index}"
        try:
            if root.exists():
                remove_tree(root)
            root.mkdir()
            yield WorkFolder(root=root, sources=sources, torch=torch)
        finally:
            for folder in (path for name in ("keep", "obj", "stubs", "tmp") for path in root.glob(f"*/{name}")):
                remove_tree(folder)
            lock.release()
        return
