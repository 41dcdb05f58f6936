"""Git's tree id of a folder, computed from modes, names and contents: no git, no history.

A tree id commits to every byte, name and executable bit below it, so equal ids mean equal sources wherever they came
from. The format is git's: a blob is `blob <size>\\0<bytes>`, a tree is `tree <size>\\0` and its sorted entries.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flash_attn3_sm121.errors import SourceError

FILE, EXECUTABLE, LINK, FOLDER = "100644", "100755", "120000", "40000"
MODES = (FILE, EXECUTABLE, LINK)

# Left behind by tools that ran inside a checkout; git ignores them everywhere and no compiler reads them.
IGNORED_FOLDERS = frozenset({".git", "__pycache__"})
IGNORED_SUFFIXES = (".pyc", ".egg-info")

_LINE = re.compile(r"(?P<mode>\d{6}) (?P<blob>[0-9a-f]{40}) (?P<path>[^\0\n]+)")


@dataclass(frozen=True, kw_only=True, order=True)
class Entry:
    """One file of a tree: path with slashes relative to the tree's root, git mode, blob id."""

    path: str
    mode: str
    blob: str


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How a tree differs from the one that was wanted, file by file; `str` is the text for people."""

    changed: tuple[str, ...]
    mode_changed: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.changed or self.mode_changed or self.missing or self.extra)

    def __str__(self) -> str:
        groups = (
            ("changed", self.changed),
            ("executable bit differs", self.mode_changed),
            ("missing", self.missing),
            ("extra", self.extra),
        )
        return "; ".join(f"{name}: {_some(paths)}" for name, paths in groups if paths)


def _some(paths: tuple[str, ...], limit: int = 5) -> str:
    rest = len(paths) - limit
    return ", ".join(paths[:limit]) + (f" and {rest} more" if rest > 0 else "")


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def scan(root: Path) -> list[Entry]:
    """Every file below `root` as git would record it. Raises SourceError for what git could not record."""
    if not root.is_dir():
        raise SourceError(f"not a folder: {root}")
    entries: list[Entry] = []
    for folder, names, files in os.walk(root):
        names[:] = sorted(n for n in names if n not in IGNORED_FOLDERS and not n.endswith(IGNORED_SUFFIXES))
        links = [n for n in names if (Path(folder) / n).is_symlink()]
        for name in (*files, *links):
            if name.endswith(IGNORED_SUFFIXES) or name in IGNORED_FOLDERS:
                continue
            path = Path(folder) / name
            entries.append(_entry(path, path.relative_to(root).as_posix()))
    return sorted(entries)


def _entry(path: Path, relative: str) -> Entry:
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            return Entry(path=relative, mode=LINK, blob=blob_id(os.fsencode(path.readlink())))
        if not stat.S_ISREG(mode):
            raise SourceError(f"{path}: neither a file, a folder nor a link")
        return Entry(path=relative, mode=EXECUTABLE if mode & 0o100 else FILE, blob=blob_id(path.read_bytes()))
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error


def tree_id(entries: Iterable[Entry]) -> str:
    """The git id of the tree that holds exactly these files."""
    nested: dict[str, object] = {}
    for entry in entries:
        level = nested
        *folders, name = entry.path.split("/")
        for folder in folders:
            inner = level.setdefault(folder, {})
            if not isinstance(inner, dict):
                raise SourceError(f"{entry.path}: {folder} is both a file and a folder")
            level = inner
        if name in level:
            raise SourceError(f"{entry.path}: listed twice")
        level[name] = entry
    return _tree(nested).hex()


def _tree(level: dict[str, object]) -> bytes:
    rows: list[tuple[bytes, bytes, bytes]] = []
    for name, item in level.items():
        raw = os.fsencode(name)
        if isinstance(item, Entry):
            rows.append((raw, item.mode.encode() + b" " + raw, bytes.fromhex(item.blob)))
        elif isinstance(item, dict):
            # Git sorts a folder as if its name ended in a slash.
            rows.append((raw + b"/", FOLDER.encode() + b" " + raw, _tree(item)))
    body = b"".join(head + b"\0" + digest for _, head, digest in sorted(rows))
    return hashlib.sha1(b"tree %d\0" % len(body) + body, usedforsecurity=False).digest()


def format_manifest(entries: Iterable[Entry]) -> str:
    """One line a file, `mode blob path`, sorted: small, and a change shows which file it is."""
    return "".join(f"{entry.mode} {entry.blob} {entry.path}\n" for entry in sorted(entries))


def parse_manifest(text: str, *, origin: str) -> tuple[Entry, ...]:
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None or match["mode"] not in MODES:
            raise SourceError(f"{origin}, line {number}: expected `mode blob path`, found {line[:80]!r}")
        if match["path"].startswith("/") or ".." in match["path"].split("/"):
            raise SourceError(f"{origin}, line {number}: a path that leaves the tree: {match['path']!r}")
        entries.append(Entry(path=match["path"], mode=match["mode"], blob=match["blob"]))
    return tuple(entries)


def compare(expected: Iterable[Entry], found: Iterable[Entry]) -> Difference:
    want = {entry.path: entry for entry in expected}
    have = {entry.path: entry for entry in found}
    both = sorted(set(want) & set(have))
    return Difference(
        changed=tuple(path for path in both if want[path].blob != have[path].blob),
        mode_changed=tuple(p for p in both if want[p].blob == have[p].blob and want[p].mode != have[p].mode),
        missing=tuple(sorted(set(want) - set(have))),
        extra=tuple(sorted(set(have) - set(want))),
    )
