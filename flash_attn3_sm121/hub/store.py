"""The hub folder on disk: objects by content, generations by number, one rename that commits.

Whatever is interrupted, CURRENT names a complete generation: objects and the new generation are written (and
flushed) before CURRENT is renamed, and nothing that a generation needs is changed in place. Writers hold `lock`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

from flash_attn3_sm121.errors import HubError, IntegrityError
from flash_attn3_sm121.hub.index import FileEntry, Index, Manifest, dump_json, load_json
from flash_attn3_sm121.hub.layout import KIND, SCHEMA, HubLayout

CHUNK = 1 << 20
KEEP_GENERATIONS = 3


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def hash_stream(stream: BinaryIO) -> tuple[str, int]:
    """sha256 and size of what is left in a stream."""
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def hash_file(path: Path) -> tuple[str, int]:
    with path.open("rb") as stream:
        return hash_stream(stream)


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A hub folder. Reading needs no lock; writing goes through `transaction()`."""

    layout: HubLayout
    durable: bool = True  # flush to the disk before a commit: what a loss of power needs, and a kill does not
    _checked: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def create(cls, root: Path, *, durable: bool = True) -> Hub:
        """Open the hub at `root`, making it first where there is none. A folder with other things in it is refused."""
        layout = HubLayout(root=root.absolute())
        if not layout.marker.exists():
            # Folders without the marker are another publisher's first second, or one that was killed in it.
            ours = {path.name for path in (layout.lock, layout.generations, layout.objects, layout.tmp)}
            if root.exists() and (not root.is_dir() or any(path.name not in ours for path in root.iterdir())):
                raise HubError(f"{root} is not a hub and not empty", hint="name an empty or a new folder with --hub")
            for folder in (layout.root, layout.generations, layout.objects, layout.tmp):
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise HubError(f"cannot make {folder}: {error.strerror}") from error
            hub = cls(layout=layout, durable=durable)
            hub._write(layout.marker, dump_json({"schema": SCHEMA, "kind": KIND}))
        return cls.open(root, durable=durable)

    @classmethod
    def open(cls, root: Path, *, durable: bool = True) -> Hub:
        layout = HubLayout(root=root.absolute())
        try:
            value = load_json(layout.marker.read_bytes(), origin=str(layout.marker))
        except OSError as error:
            raise HubError(
                f"no hub at {root} ({error.strerror})", hint=f"flash-attn3 hub publish --hub {root} WHEEL..."
            ) from error
        if value.get("kind") != KIND:
            raise HubError(f"{layout.marker}: expected the kind {KIND!r}, found {value.get('kind')!r}")
        return cls(layout=layout, durable=durable)

    # Reading

    def generation(self) -> int:
        try:
            text = self.layout.current.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return 0
        if not text.isdecimal():
            raise IntegrityError(f"{self.layout.current}: expected a number, found {text!r}")
        return int(text)

    def index(self) -> Index:
        """The current generation; consistent in itself without any lock."""
        while True:
            number = self.generation()
            if number == 0:
                return Index()
            path = self.layout.generation(number)
            try:
                return self._parse_index(path, number)
            except FileNotFoundError as error:
                # gc may take an old generation away between the two reads, but then CURRENT has moved on.
                if self.generation() == number:
                    raise IntegrityError(f"CURRENT names generation {number}, but {path} is missing") from error

    def _parse_index(self, path: Path, number: int) -> Index:
        index = Index.from_bytes(path.read_bytes(), origin=str(path))
        if index.generation != number:
            raise IntegrityError(f"{path}: expected generation {number}, found {index.generation}")
        return index

    def verified(self, entry: FileEntry) -> Path:
        """The path of an object whose content was found to match its name (remembered until the file changes)."""
        path = self.layout.object(entry.sha256)
        try:
            stat = path.lstat()
        except FileNotFoundError as error:
            raise IntegrityError(f"object {entry.sha256} is missing", hint="flash-attn3 hub check") from error
        seen = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_mode)
        if self._checked.get(entry.sha256) != seen:
            if path.is_symlink() or hash_file(path) != (entry.sha256, entry.size):
                raise IntegrityError(f"object {entry.sha256} was tampered with", hint="flash-attn3 hub check")
            self._checked[entry.sha256] = seen
        return path

    def read(self, entry: FileEntry) -> bytes:
        """An object's bytes, proven to be those that were put in."""
        try:
            data = self.layout.object(entry.sha256).read_bytes()
        except FileNotFoundError as error:
            raise IntegrityError(f"object {entry.sha256} is missing", hint="flash-attn3 hub check") from error
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise IntegrityError(f"object {entry.sha256} was tampered with", hint="flash-attn3 hub check")
        return data

    def manifest(self, sha256: str) -> Manifest:
        """A manifest by the hash that a revision gives."""
        return Manifest.from_bytes(self.manifest_bytes(sha256), origin=f"manifest {sha256}")

    def manifest_bytes(self, sha256: str) -> bytes:
        return self.read(FileEntry(sha256=sha256, size=0))

    # Writing

    @contextmanager
    def transaction(self, *, narrate: Callable[[str], None] | None = None) -> Iterator[Transaction]:
        """Hold the writers' lock. Nothing is visible to readers until `commit` on the yielded transaction."""
        with self.layout.lock.open("a+b") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                (narrate or _to_stderr)(f"waiting for another writer of {self.layout.root} ...")
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield Transaction(hub=self, base=self.index())

    def _write(self, target: Path, data: bytes, *, mode: int = 0o644) -> None:
        """Beside, flushed, then renamed into place."""
        beside = self.layout.tmp / uuid.uuid4().hex
        with beside.open("wb") as stream:
            stream.write(data)
            self._flush(stream)
        beside.chmod(mode)
        beside.replace(target)
        self._flush_folder(target.parent)

    def _flush(self, stream: BinaryIO) -> None:
        stream.flush()
        if self.durable:
            os.fsync(stream.fileno())

    def _flush_folder(self, path: Path) -> None:
        if not self.durable:
            return
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _to_stderr(text: str) -> None:
    print(f"flash-attn3: {text}", file=sys.stderr)


@dataclass(kw_only=True)
class Transaction:
    """What a writer may do while it holds the lock."""

    hub: Hub
    base: Index

    def add_bytes(self, data: bytes) -> FileEntry:
        entry = FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        target = self.hub.layout.object(entry.sha256)
        if not self._intact(target, entry):
            target.parent.mkdir(exist_ok=True)
            self.hub._write(target, data, mode=0o444)
        return entry

    def add_file(self, source: Path) -> FileEntry:
        """Copy a file in; its hash is taken of the bytes that were copied, not of the source."""
        beside = self.hub.layout.tmp / uuid.uuid4().hex
        with source.open("rb") as reader, beside.open("wb") as writer:
            shutil.copyfileobj(reader, writer, CHUNK)
            self.hub._flush(writer)
        sha256, size = hash_file(beside)
        entry, target = FileEntry(sha256=sha256, size=size), self.hub.layout.object(sha256)
        if self._intact(target, entry):
            beside.unlink()
        else:
            target.parent.mkdir(exist_ok=True)
            beside.chmod(0o444)
            beside.replace(target)
            self.hub._flush_folder(target.parent)
        return entry

    @staticmethod
    def _intact(target: Path, entry: FileEntry) -> bool:
        # An object that rotted or was tampered with is replaced by putting the same content in again.
        return not target.is_symlink() and target.is_file() and hash_file(target) == (entry.sha256, entry.size)

    def commit(self, index: Index) -> Index:
        """Make `index` the next generation; the same content as before makes none."""
        if replace(index, generation=0, created="") == replace(self.base, generation=0, created=""):
            return self.base
        done = replace(index, generation=self.base.generation + 1, created=now())
        layout = self.hub.layout
        self.hub._write(layout.generation(done.generation), done.to_bytes())
        self.hub._write(layout.current, f"{done.generation}\n".encode())
        self.base = done
        return done
