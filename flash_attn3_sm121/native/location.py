"""Where the family libraries lie: beside the package, or, when a source tree is imported, in the installed wheel.

python puts the folder that it is started in first on its path. In a clone it therefore imports the source tree, which
holds no library, although the wheel is installed. The libraries of the wheel serve the source tree just as well.
"""

from __future__ import annotations

import importlib.metadata
import sys
from dataclasses import dataclass
from pathlib import Path

from flash_attn3_sm121._version import __version__
from flash_attn3_sm121.errors import NEWEST_WHEEL, pip_command

# Not resolved: in the Hugging Face cache every file is a link into a flat folder, and `lib` lies beside the link.
PACKAGE = Path(__file__).absolute().parent.parent
NAME = "flash_attn3_sm121"


@dataclass(frozen=True, kw_only=True)
class Location:
    """The folder of the libraries, and what there is to say about it."""

    folder: Path
    note: str | None = None  # set where a source tree is imported


def locate(package: Path = PACKAGE, path: list[str] | None = None) -> Location:
    """Find the libraries of an imported package.

    Args:
        package: the folder of the package as it is imported.
        path: where installed distributions are looked for; None: sys.path.
    """
    own = package / "lib"
    tree = package.parent
    if own.is_dir() or not (tree / "pyproject.toml").is_file():
        return Location(folder=own)
    imported = f"python imports the source tree {tree}"
    wheel = _installed_wheel(package, path)
    if wheel is None:
        return Location(
            folder=own,
            note=f"{imported}, which holds no kernel library, and no wheel of ours is installed; to have one: "
            f"make wheel && {pip_command()} install {NEWEST_WHEEL}",
        )
    version, folder = wheel
    if version.partition("+")[0] != __version__:
        return Location(
            folder=own,
            note=f"{imported} ({__version__}), which holds no kernel library, and not the installed wheel, whose "
            f"libraries are of another version ({version}); start python in another folder, or install the wheel of "
            f"this tree: make wheel && {pip_command()} install --force-reinstall --no-deps {NEWEST_WHEEL}",
        )
    return Location(
        folder=folder,
        note=f"{imported}, and takes the libraries of the installed wheel, {folder}; to import the wheel itself, start "
        "python in another folder",
    )


def _installed_wheel(package: Path, path: list[str] | None) -> tuple[str, Path] | None:
    """(version, library folder) of the first installed distribution of ours that has libraries."""
    for distribution in importlib.metadata.distributions(name=NAME, path=sys.path if path is None else path):
        folder = Path(str(distribution.locate_file(f"{NAME}/lib")))
        if folder.is_dir() and folder.parent != package:
            return distribution.version, folder
    return None
