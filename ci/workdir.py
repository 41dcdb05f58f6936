"""A folder to compile in: the edited sources under fixed relative names, so that commands hold no path of this machine.

    src      -> the edited sources (a shared, read-only entry of the content cache)
    torch    -> torch's headers
    units/   our generated files        keep/<unit>/  nvcc's intermediate files
    obj/     objects                    stubs/        what linking needs

Each run has its own; a killed run's folder is swept by the next one, which sees that nobody holds its lock.
"""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ci.cachedir import remove_tree
from ci.units import Unit


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


def _sweep(parent: Path) -> None:
    for folder in parent.iterdir():
        lock = folder / "lock"
        if not lock.exists():
            continue
        with lock.open("r+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # its run lives
            remove_tree(folder)


@contextmanager
def workdir(cache: Path, *, sources: Path, torch: Path) -> Iterator[WorkDir]:
    """A fresh folder, removed when the block ends."""
    parent = cache.absolute() / "work"
    parent.mkdir(parents=True, exist_ok=True)
    _sweep(parent)
    root = Path(tempfile.mkdtemp(prefix="run.", dir=parent))
    with (root / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for name in ("units", "keep", "obj", "stubs", "tmp"):
            (root / name).mkdir()
        (root / "src").symlink_to(sources.absolute())
        (root / "torch").symlink_to(torch.absolute())
        try:
            yield WorkDir(root=root)
        finally:
            remove_tree(root)
