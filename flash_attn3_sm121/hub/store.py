"""The hub folder on disk: objects by content, generations by number, one rename that commits.

Whatever is interrupted, CURRENT names a complete generation: objects and the new generation are on the disk before
CURRENT is renamed, and nothing that a generation needs is changed in place. Writers hold `lock`.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import io
import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

from flash_attn3_sm121.errors import HubError, IntegrityError
from flash_attn3_sm121.files import CHUNK, hash_file, hash_stream
from flash_attn3_sm121.hub.index import FileEntry, Index, Manifest, Revision, dump_json, load_json
from flash_attn3_sm121.hub.layout import KIND, SCHEMA, HubLayout
from flash_attn3_sm121.hub.sign import SIGNING_ENV, SigningKey, TrustedKeys, signer_of

KEEP_GENERATIONS = 3
RECOVER = "flash-attn3 hub rollback: goes back to the newest generation that is whole"


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One generation as it lies on the disk and is served: its index, the very bytes of it, and their signature."""

    index: Index
    data: bytes = b""
    signature: bytes | None = None  # the content of the signature file; None for an unsigned generation

    @property
    def signer(self) -> str | None:
        """The id of the key that the signature names. The signature is not checked."""
        if self.signature is None:
            return None
        return signer_of(self.signature, origin=f"the signature of generation {self.index.generation}")


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A hub folder. Reading needs no lock; writing goes through `transaction()`."""

    layout: HubLayout
    durable: bool = True  # flush to the disk before a commit: what a loss of power needs, and a kill does not
    _checked: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def create(cls, root: Path, *, durable: bool = True) -> Hub:
        """Open the hub at `root`, making it first where there is none. A folder with other things in it is refused."""
        hub = cls(layout=HubLayout(root=root.absolute()), durable=durable)
        layout = hub.layout
        if not layout.marker.exists():
            # Our own names without a marker are another publisher's first second, or one that was killed in it.
            ours = {path.name for path in (layout.lock, layout.generations_folder, layout.objects, layout.tmp)}
            ours |= {layout.marker.name, layout.current.name}
            if root.exists() and (not root.is_dir() or any(path.name not in ours for path in root.iterdir())):
                raise HubError(f"{root} is not a hub and not empty", hint="name an empty or a new folder with --hub")
            for folder in (layout.root, layout.generations_folder, layout.objects, layout.tmp):
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise HubError(
                        f"cannot make {folder}: {error.strerror}",
                        hint="name another: --hub DIR, or FLASH_ATTN3_HUB=DIR",
                    ) from error
            with hub._locked(lambda _: None):
                if not layout.current.exists() and not hub.generations():
                    hub._write(layout.current, b"0\n")  # from now on, a hub without this file has lost it
                if not layout.marker.exists():
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
            if self.generations():
                raise IntegrityError(
                    f"{self.layout.current} is missing, though generations were published", hint=RECOVER
                ) from None
            return 0
        if not text.isdecimal():
            raise IntegrityError(f"{self.layout.current}: expected a number, found {text!r}", hint=RECOVER)
        return int(text)

    def generations(self) -> list[int]:
        """The numbers of the generations that are kept, oldest first; the last may be one that was never committed."""
        names = (path.name for path in self.layout.generations_folder.iterdir())
        return sorted(number for name in names if (number := self.layout.parse_generation(name)) is not None)

    def index(self) -> Index:
        """The index of the current generation."""
        return self.current().index

    def current(self) -> Generation:
        """Read the current generation. No lock is needed."""
        while True:
            number = self.generation()
            if number == 0:
                return Generation(index=Index())
            try:
                return self.read_generation(number)
            except FileNotFoundError as error:
                # gc may take an old generation away between the two reads, but then CURRENT has moved on.
                if self.generation() == number:
                    path = self.layout.generation(number)
                    raise IntegrityError(f"CURRENT names generation {number}, but {path} is missing") from error

    def read_generation(self, number: int) -> Generation:
        """Any generation that is kept."""
        path, signature = self.layout.generation(number), self.layout.signature(number)
        data = path.read_bytes()
        index = Index.from_bytes(data, origin=str(path))
        if index.generation != number:
            raise IntegrityError(f"{path}: expected generation {number}, found {index.generation}")
        return Generation(index=index, data=data, signature=signature.read_bytes() if signature.is_file() else None)

    def trusted(self, keys: TrustedKeys | None) -> Generation:
        """Read the current generation. With keys, raises IntegrityError unless one of them signed its bytes."""
        found = self.current()
        number = found.index.generation
        if keys is not None and number:
            keys.verify(found.data, found.signature, origin=f"generation {number} of {self.layout.root}")
        return found

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
        """Read an object. Raises IntegrityError where its bytes are not those that were stored."""
        try:
            data = self.layout.object(entry.sha256).read_bytes()
        except FileNotFoundError as error:
            raise IntegrityError(f"object {entry.sha256} is missing", hint="flash-attn3 hub check") from error
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise IntegrityError(f"object {entry.sha256} was tampered with", hint="flash-attn3 hub check")
        return data

    def manifest(self, sha256: str) -> Manifest:
        """A manifest by the hash that a revision gives."""
        return Manifest.from_bytes(self.read(FileEntry(sha256=sha256, size=0)), origin=f"manifest {sha256}")

    def generated(self, revision: Revision) -> Mapping[str, FileEntry]:
        """The generated files of one revision, by their path in the tree; none where the index lists them."""
        return self.manifest(revision.listing).files if revision.listing else {}

    def manifest_entry(self, sha256: str) -> FileEntry:
        """A manifest's hash and size. The index holds the hash alone."""
        return FileEntry(sha256=sha256, size=len(self.read(FileEntry(sha256=sha256, size=0))))

    def recover(self) -> int:
        """Set CURRENT to the newest generation that can be read: for a CURRENT that is lost or names a damaged one."""
        with self._locked(_to_stderr):
            number = self.newest_readable().generation
            self._write(self.layout.current, f"{number}\n".encode())
            return number

    def newest_readable(self) -> Index:
        """The newest generation that can be read, whatever CURRENT says."""
        for number in reversed(self.generations()):
            try:
                return self.read_generation(number).index
            except IntegrityError as error:
                _to_stderr(f"passed over: {error.args[0]}")
        raise IntegrityError(f"{self.layout.root}: no generation can be read", hint="publish again into a new folder")

    # Writing

    @contextmanager
    def transaction(self, key: SigningKey | None = None, *, unsigned: bool = False) -> Iterator[Transaction]:
        """Hold the writers' lock. Nothing is visible to readers until `commit` on the yielded transaction.

        Args:
            key: Signs what is committed.
            unsigned: Allow a commit without a key although the generation before it is signed.
        """
        with self._locked(_to_stderr):
            yield Transaction(hub=self, current=self.current(), key=key, unsigned=unsigned)

    @contextmanager
    def _locked(self, narrate: Callable[[str], None]) -> Iterator[None]:
        with self.layout.lock.open("a+b") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                narrate(f"waiting for another writer of {self.layout.root} ...")
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _write(self, target: Path, data: bytes) -> None:
        """Write a file whole or not at all, and all that was written before it first: the disk keeps the order."""
        new = self.layout.tmp / uuid.uuid4().hex
        try:
            new.write_bytes(data)
            self._flush()
            new.replace(target)
        finally:
            new.unlink(missing_ok=True)  # a full disk must not keep half a file

    def _flush(self) -> None:
        """Have the disk hold what was written so far, with one call for the hub's file system."""
        if not self.durable:
            return
        libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(libc, "syncfs"):  # outside of Linux
            os.sync()
            return
        handle = os.open(self.layout.root, os.O_RDONLY)
        try:
            if libc.syncfs(handle) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(self.layout.root))
        finally:
            os.close(handle)


def _to_stderr(text: str) -> None:
    print(f"flash-attn3: {text}", file=sys.stderr)


@dataclass(kw_only=True)
class Transaction:
    """A writer that holds the lock."""

    hub: Hub
    current: Generation
    key: SigningKey | None = None
    unsigned: bool = False

    @property
    def base(self) -> Index:
        """What the current generation holds."""
        return self.current.index

    @property
    def next(self) -> int:
        """The number of the generation that a commit makes; larger than any number that was ever written."""
        return max([self.base.generation, *self.hub.generations()]) + 1

    def verified(self, entry: FileEntry) -> Path:
        return self.hub.verified(entry)

    def add_bytes(self, data: bytes) -> FileEntry:
        entry = FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        intact = self._intact(self.hub.layout.object(entry.sha256), entry)
        return entry if intact else self.add_stream(io.BytesIO(data))

    def add_file(self, source: Path) -> FileEntry:
        with source.open("rb") as reader:
            return self.add_stream(reader)

    def add_stream(self, reader: IO[bytes], stopped: threading.Event | None = None) -> FileEntry:
        """Store what is left in a stream. Its hash is taken of the bytes that are written.

        `stopped` is for threads: once it is set, HubError is raised and nothing is kept.
        """
        new = self.hub.layout.tmp / uuid.uuid4().hex
        digest, size = hashlib.sha256(), 0
        try:
            with new.open("wb") as writer:
                while chunk := reader.read(CHUNK):
                    if stopped is not None and stopped.is_set():
                        raise HubError("stopped before the end of a file")
                    digest.update(chunk)
                    size += writer.write(chunk)
            entry = FileEntry(sha256=digest.hexdigest(), size=size)
            target = self.hub.layout.object(entry.sha256)
            if not self._intact(target, entry):
                target.parent.mkdir(exist_ok=True)
                new.chmod(0o444)
                new.replace(target)
        finally:
            new.unlink(missing_ok=True)
        return entry

    @staticmethod
    def _intact(target: Path, entry: FileEntry) -> bool:
        # An object that rotted or was tampered with is replaced by putting the same content in again.
        return not target.is_symlink() and target.is_file() and hash_file(target) == (entry.sha256, entry.size)

    def numbered(self, index: Index) -> Index:
        """`index` with the next generation's number, or the current generation where nothing would change."""
        signer = self.current.signer
        if signer is not None and self.key is None and not self.unsigned:
            raise HubError(
                f"generation {self.base.generation} is signed by {signer}, and there is no key to sign the next",
                hint=f"set {SIGNING_ENV} (or say --sign KEY); --unsigned makes an unsigned one all the same",
            )
        same = _bare(index) == _bare(self.base) and bool(self.base.site)
        if same and signer == (self.key.key_id if self.key is not None else None):
            return self.base
        return replace(index, hub=index.hub or uuid.uuid4().hex, generation=self.next, created=now())

    def commit(self, done: Generation) -> None:
        """Make a generation the current one: its files first, CURRENT last."""
        layout, number = self.hub.layout, done.index.generation
        if done.signature is not None:
            self.hub._write(layout.signature(number), done.signature)
        self.hub._write(layout.generation(number), done.data)
        self.hub._write(layout.current, f"{number}\n".encode())
        self.hub._flush()


def _bare(index: Index) -> Index:
    """An index without what follows from the rest: generations with equal ones have the same content."""
    return replace(index, hub="", generation=0, created="", site={})


@dataclass(kw_only=True)
class Rehearsal(Transaction):
    """A transaction that writes nothing, for the dry run of a publish."""

    _bytes: dict[str, bytes] = field(default_factory=dict)
    _files: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path) -> Rehearsal:
        hub = Hub(layout=HubLayout(root=root.absolute()), durable=False)
        return cls(hub=hub, current=hub.current() if hub.layout.marker.is_file() else Generation(index=Index()))

    @property
    def next(self) -> int:
        return self.base.generation + 1

    def verified(self, entry: FileEntry) -> Path:
        return self._files.get(entry.sha256) or self.hub.verified(entry)

    def add_bytes(self, data: bytes) -> FileEntry:
        entry = FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        self._bytes[entry.sha256] = data
        return entry

    def add_file(self, source: Path) -> FileEntry:
        sha256, size = hash_file(source)
        self._files[sha256] = source
        return FileEntry(sha256=sha256, size=size)

    def add_stream(self, reader: IO[bytes], stopped: threading.Event | None = None) -> FileEntry:
        sha256, size = hash_stream(reader)
        return FileEntry(sha256=sha256, size=size)

    def manifest(self, sha256: str) -> Manifest:
        if sha256 in self._bytes:
            return Manifest.from_bytes(self._bytes[sha256], origin=f"manifest {sha256}")
        return self.hub.manifest(sha256)
