"""Hands out the bytes of objects that were hashed and found right; reads the conditions and ranges of requests.

An object is hashed when it is first asked for. The result counts for as long as the file's identity (inode, size,
times) stays the same, which is looked at whenever bytes are read from it. Conditions and ranges are those of RFC 9110.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import stat
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from flash_attn3_sm121.errors import IntegrityError
from flash_attn3_sm121.hub.index import FileEntry
from flash_attn3_sm121.hub.layout import HubLayout

MOST_REMEMBERED = 1 << 16
PIECE = 4 << 20
_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})-(\d{0,18})\s*")
_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')

Identity = tuple[int, ...]


class GoneError(IntegrityError):
    """The index names an object that is not in the folder, or is no plain file."""


def identity(info: os.stat_result) -> Identity:
    """What tells a file from another one of its name, and from itself before somebody wrote to it."""
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


async def hash_file(path: Path) -> tuple[str, int]:
    """sha256 and size of a file. Between its pieces it can be cancelled: a server that stops waits for no large one."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as stream:

        def piece() -> int:
            chunk = stream.read(PIECE)
            digest.update(chunk)
            return len(chunk)

        while count := await asyncio.to_thread(piece):
            size += count
    return digest.hexdigest(), size


@dataclass(kw_only=True)
class Files:
    """The objects of one hub folder, for one event loop."""

    layout: HubLayout
    _good: OrderedDict[str, Identity] = field(default_factory=OrderedDict)
    _hashing: dict[str, asyncio.Lock] = field(default_factory=dict)

    async def path(self, entry: FileEntry) -> Path:
        """The object's path; raises IntegrityError where its content is not what its name says."""
        path = self.layout.object(entry.sha256)
        found = self._look(path, entry)
        if self._good.get(entry.sha256) == found:
            return path
        lock = self._hashing.setdefault(entry.sha256, asyncio.Lock())
        async with lock:  # hash once, however many clients wait for it
            if self._good.get(entry.sha256) != found:
                self._good.pop(entry.sha256, None)
                if await hash_file(path) != (entry.sha256, entry.size) or self._look(path, entry) != found:
                    raise IntegrityError(f"object {entry.sha256} was tampered with; it is not served")
                self._good[entry.sha256] = found
                if len(self._good) > MOST_REMEMBERED:
                    self._good.popitem(last=False)
        self._hashing.pop(entry.sha256, None)
        return path

    def unchanged(self, path: Path) -> bool:
        """Whether an object's file is still the one that was hashed."""
        try:
            return self._good.get(path.name) == identity(os.lstat(path))
        except OSError:
            return False

    def _look(self, path: Path, entry: FileEntry) -> Identity:
        try:
            info = os.lstat(path)
        except OSError as error:
            raise GoneError(f"object {entry.sha256}: {error.strerror}") from error
        if not stat.S_ISREG(info.st_mode):
            raise GoneError(f"object {entry.sha256} is no plain file; it is not served")
        if info.st_size != entry.size:
            raise IntegrityError(f"object {entry.sha256}: expected {entry.size} bytes, found {info.st_size}")
        return identity(info)


class UnsatisfiableError(ValueError):
    """The range lies outside the representation: 416."""


def named(header: str, etag: str, *, weak: bool) -> bool:
    """Whether a list of entity tags holds `etag`; only weak comparison accepts tags marked as weak."""
    if header.strip() == "*":
        return True
    return any(f'"{value}"' == etag for mark, value in _TAG.findall(header) if weak or not mark)


def select(size: int, etag: str, *, range_header: str | None, if_range: str | None) -> tuple[int, int] | None:
    """First byte and the one behind the last that a GET asks for; None means the whole.

    Several ranges at once, or a header that we cannot read, mean the whole (the standard allows both). A date in
    If-Range never matches: the times of files here are made from their content.
    """
    match = _RANGE.fullmatch(range_header) if range_header is not None else None
    if match is None or not (match[1] or match[2]):
        return None
    if if_range is not None and not named(if_range, etag, weak=False):
        return None
    if not match[1]:
        count = min(int(match[2]), size)
        if count == 0:
            raise UnsatisfiableError(range_header)
        return size - count, size
    start, last = int(match[1]), int(match[2]) if match[2] else size - 1
    if match[2] and last < start:
        return None  # not a valid range at all, so it is ignored
    if start >= size:
        raise UnsatisfiableError(range_header)
    return start, min(last, size - 1) + 1


def accepts_gzip(header: str | None) -> bool:
    """Whether Accept-Encoding allows gzip: by its name, else by `*`."""
    qualities: dict[str, float] = {}
    for item in (header or "").lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        match = re.fullmatch(r"q\s*=\s*([01](?:\.\d{0,3})?)", parameters[0]) if parameters else None
        qualities[name] = float(match[1]) if match else 0.0 if parameters else 1.0
    return qualities.get("gzip", qualities.get("*", 0.0)) > 0
