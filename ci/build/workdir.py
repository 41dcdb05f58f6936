"""A folder to compile in: the edited sources under fixed relative names, so that commands hold no path of this machine.

    src      -> the edited sources (a shared, read-only entry of the content cache)
    torch    -> torch's headers
    units/   our generated files        keep/<unit>/  nvcc's intermediate files
    obj/     objects                    stubs/        what linking needs

Each run has one to itself; what a killed run left is removed by the next one, which sees that nobody holds its lock.
"""

from __future__ import annotations

import fcntl
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ci.cache.folders import remove_tree
from ci.plan.units import Unit


@dataclass(frozen=True, kw_only=True)
class WorkDir:
    """Paths inside one run's folder."""

    root: Path

    def unit_file(self, unit: Unit) -> Path:
        return self.root / "units" / unit.file

    def keep(self, unit: Unit) -> Path:
        return self.root / "keep" / unit.name

    def object(self, unit: Unit) -> Path:
        return self.root / "obj" / unit.object

    def write(self, unit: Unit) -> None:
        """Put the unit's text in place, with an empty folder for intermediate files."""
        self.unit_file(unit).write_text(unit.text, encoding="utf-8")
        self.drop_intermediate(unit)
        self.keep(unit).mkdir()

    def drop_intermediate(self, unit: Unit) -> None:
        if self.keep(unit).exists():
            remove_tree(self.keep(unit))


@contextmanager
def _slot(parent: Path) -> Iterator[Path]:
    """The first folder that no living run uses, emptied of what a killed one left.

    Few fixed names, and not a new one each time: compiler caches take the folder into their keys.
    """
    for index in itertools.count():
        with (parent / f"run.{index}.lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            root = parent / f"run.{index}"
            if root.exists():
                remove_tree(root)
            root.mkdir()
            try:
                yield root
            finally:
                remove_tree(root)
            return


@contextmanager
def workdir(cache: Path, *, sources: Path, torch: Path) -> Iterator[WorkDir]:
    """A fresh folder, removed when the block ends."""
    parent = cache.absolute() / "work"
    parent.mkdir(parents=True, exist_ok=True)
    with _slot(parent) as root:
        for name in ("units", "keep", "obj", "stubs", "tmp"):
            (root / name).mkdir()
        (root / "src").symlink_to(sources.absolute())
        (root / "torch").symlink_to(torch.absolute())
        yield WorkDir(root=root)
