"""Which source files a unit depends on: the closure of its #include lines over the build tree, taken conservatively.

Conditions are ignored and every folder is tried, so the closure may hold too much, never too little. Names that are in
no folder of the tree belong to the toolchain or the system, whose fingerprints are in the object's key as well.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from flash_attn3_sm121.errors import CompileError

_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include(?:_next)?[ \t]*(?P<rest>.*)$", re.MULTILINE)
_NAME = re.compile(r'(?:"([^"\n]+)"|<([^>\n]+)>)')
# Macros that name a header of the toolchain's own (libcu++), which is never in the tree.
_TOOLCHAIN_MACROS = ("CUDA_STD_HEADER(",)
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)


def names(text: str, *, origin: str) -> tuple[str, ...]:
    """The names in #include lines. A computed include (a macro) cannot be followed, so it is an error."""
    included = []
    for match in _INCLUDE.finditer(_COMMENT.sub(" ", text)):
        if match["rest"].startswith(_TOOLCHAIN_MACROS):
            continue
        name = _NAME.match(match["rest"])
        if name is None:
            raise CompileError(
                f"{origin}: cannot tell what this includes: {match[0].strip()!r}",
                hint="an object's cache key needs the names of all files it depends on",
            )
        included.append(name[1] or name[2])
    return tuple(dict.fromkeys(included))


def _candidates(name: str, including: PurePosixPath, roots: Iterable[str]) -> Iterable[PurePosixPath]:
    for folder in (str(including.parent), *roots):
        yield PurePosixPath(posixpath.normpath(posixpath.join(folder, name)))


class Closures:
    """Closures over one build tree; each file is read once, however many units include it."""

    def __init__(self, folder: Path, roots: tuple[str, ...]) -> None:
        self._folder = folder
        self._roots = roots
        self._direct: dict[PurePosixPath, tuple[PurePosixPath, ...]] = {}

    def _resolve(self, name: str, including: PurePosixPath) -> tuple[PurePosixPath, ...]:
        """Every file of the tree that the name may mean (which one depends on conditions that are not looked at)."""
        found = (path for path in _candidates(name, including, self._roots) if (self._folder / path).is_file())
        return tuple(dict.fromkeys(found))

    def _includes(self, path: PurePosixPath) -> tuple[PurePosixPath, ...]:
        if path not in self._direct:
            text = (self._folder / path).read_text(encoding="utf-8", errors="surrogateescape")
            hits = (hit for name in names(text, origin=str(path)) for hit in self._resolve(name, path))
            self._direct[path] = tuple(dict.fromkeys(hits))
        return self._direct[path]

    def of(self, text: str, *, origin: str) -> tuple[str, ...]:
        """The tree's files that a file of that text depends on, sorted."""
        start = PurePosixPath(origin)
        waiting = [hit for name in names(text, origin=origin) for hit in self._resolve(name, start)]
        seen: set[PurePosixPath] = set()
        while waiting:
            path = waiting.pop()
            if path not in seen:
                seen.add(path)
                waiting.extend(self._includes(path))
        return tuple(sorted(str(path) for path in seen))
