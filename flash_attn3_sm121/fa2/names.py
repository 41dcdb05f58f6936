"""Where the modules named `flash_attn` lie, and whether something else of that name is in their way.

They come by two ways, both asked for by somebody: a wheel of their own (`make wheel-fa2`), or `flash-attn3 run --as
flash_attn`, which puts `_names/` in front of a program's path. Imports little: it runs before a program of others.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flash_attn3_sm121.errors import pip_command

PACKAGE = "flash_attn"
VERSION = "2.8.3"  # whose interface this is; programs compare it with what they need
FOLDER = Path(__file__).absolute().parent / "_names"
BUILD = "make wheel-fa2"
# In the text of our own flash_attn/__init__.py, and in no other's.
_MARK = b"flash_attn3_sm121"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A `flash_attn` on a path: ours, FlashAttention-2's own, or FlashAttention-4's, which has a `cute` and no more."""

    folder: Path
    ours: bool = False
    cute: bool = False


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """Why our names must not be used there, and the command that decides it."""

    text: str
    hint: str

    def __str__(self) -> str:
        return f"{self.text}\n  -> {self.hint}"


def look(path: Sequence[str] | None = None) -> tuple[Found, ...]:
    """Every `flash_attn` on an import path (this process' own, if none is given), in its order."""
    found = []
    for entry in dict.fromkeys(sys.path if path is None else path):
        folder = Path(entry or ".") / PACKAGE
        init, cute = folder / "__init__.py", (folder / "cute").is_dir()
        if init.is_file():
            found.append(Found(folder=folder, ours=_MARK in init.read_bytes(), cute=cute))
        elif cute:
            found.append(Found(folder=folder, cute=cute))
    return tuple(found)


def conflict(path: Sequence[str] | None = None) -> Conflict | None:
    """What stands in the way of our names on an import path; None: nothing does."""
    pip = f"{pip_command()} uninstall -y"
    for found in look(path):
        if found.cute and (found.ours or not (found.folder / "__init__.py").is_file()):
            return Conflict(
                text=f"FlashAttention-4 is installed ({found.folder / 'cute'}), and flash_attn3_sm121's flash_attn "
                "would hide it or take its place",
                hint=f"to keep it: {pip} flash_attn; to use ours: {pip} flash-attn-4",
            )
        if not found.ours:
            return Conflict(
                text=f"a flash_attn that is not flash_attn3_sm121's is installed ({found.folder}), and two of that "
                "name cannot be used together",
                hint=f"{pip} flash_attn, which takes the first of them away",
            )
    return None


def refuse_neighbours() -> None:
    """Stop the import of our `flash_attn` beside another one.

    Raises:
        ImportError: there is another one. Programs that can do without flash_attn go on without.
    """
    found = conflict()
    if found is not None:
        raise ImportError(str(found))
