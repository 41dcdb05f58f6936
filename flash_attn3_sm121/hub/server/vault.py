"""Opens objects of the hub by hash, and hands out only bytes that were hashed and found right.

A file is hashed when it is first asked for; the result is kept for as long as the file's identity (device, inode, size,
change and modification times) stays the same. No path is ever made from what a client sent: only from a sha256 that the
hub's own index names.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import stat
from dataclasses import dataclass, field

from flash_attn3_sm121.errors import IntegrityError
from flash_attn3_sm121.hub.index import FileEntry
from flash_attn3_sm121.hub.layout import HubLayout

Identity = tuple[int, int, int, int, int]
_CHUNK = 1 << 20


class GoneError(IntegrityError):
    """The index names an object that is not in the folder, or is no plain file."""


def _identity(info: os.stat_result) -> Identity:
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def _checked(blob: FileEntry, number: int) -> Identity:
    """What can be told without reading: a plain file of the right size."""
    info = os.fstat(number)
    plain = stat.S_ISREG(info.st_mode)
    if not plain or info.st_size != blob.size:
        found = f"{info.st_size} bytes" if plain else "no plain file"
        raise IntegrityError(f"object {blob.sha256}: expected {blob.size} bytes, found {found}; it is not served")
    return _identity(info)


@dataclass(kw_only=True)
class Vault:
    """The objects of one hub folder. Not shared between threads: all of it runs on one event loop but the hashing."""

    layout: HubLayout
    _good: dict[str, Identity] = field(default_factory=dict)
    _bad: dict[str, Identity] = field(default_factory=dict)
    _running: dict[str, asyncio.Future[None]] = field(default_factory=dict)

    async def open(self, blob: FileEntry) -> io.FileIO:
        """The object, opened and known to be right; raises IntegrityError where it is not. The caller closes it."""
        file, identity = self._open_file(blob)
        try:
            while self._good.get(blob.sha256) != identity:
                if self._bad.get(blob.sha256) == identity:
                    raise IntegrityError(
                        f"object {blob.sha256}: its bytes are not what its name says; it is not served"
                    )
                await self._verify(blob, file, identity)
                identity = _checked(blob, file.fileno())  # it may have changed while it was hashed
        except BaseException:
            file.close()
            raise
        return file

    def _open_file(self, blob: FileEntry) -> tuple[io.FileIO, Identity]:
        path = self.layout.object(blob.sha256)
        try:
            # NOFOLLOW: an object is a plain file, never a link; NONBLOCK: opening a planted pipe must not hang.
            number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise GoneError(f"object {blob.sha256}: {error.strerror}") from error
        try:
            identity = _checked(blob, number)
        except IntegrityError:
            os.close(number)
            raise
        return io.FileIO(number, "rb"), identity

    async def _verify(self, blob: FileEntry, file: io.FileIO, identity: Identity) -> None:
        """Hash once however many clients wait for it; whoever comes later waits for the same result."""
        running = self._running.get(blob.sha256)
        if running is not None:
            await asyncio.shield(running)
            return
        loop = asyncio.get_running_loop()
        # A descriptor of its own: the asker may go away while the thread still reads.
        number = os.dup(file.fileno())
        future = asyncio.ensure_future(self._hash(loop, blob, number, identity))
        self._running[blob.sha256] = future
        future.add_done_callback(lambda _: self._running.pop(blob.sha256, None))
        await asyncio.shield(future)

    async def _hash(self, loop: asyncio.AbstractEventLoop, blob: FileEntry, number: int, identity: Identity) -> None:
        found, after = await loop.run_in_executor(None, _hash_file, number)
        if after != identity:
            return  # changed while it was read: the next look starts over
        (self._good if found == blob.sha256 else self._bad)[blob.sha256] = identity


def _hash_file(number: int) -> tuple[str, Identity]:
    digest, offset = hashlib.sha256(), 0
    try:
        while chunk := os.pread(number, _CHUNK, offset):
            digest.update(chunk)
            offset += len(chunk)
        return digest.hexdigest(), _identity(os.fstat(number))
    finally:
        os.close(number)
