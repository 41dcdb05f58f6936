"""Hashes of files; and files and folders that appear whole or not at all: made beside their place, renamed into it."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

CHUNK = 1 << 20


def hash_stream(stream: IO[bytes]) -> tuple[str, int]:
    """sha256 and size of what is left in a stream."""
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def hash_file(path: Path) -> tuple[str, int]:
    """sha256 and size of a file."""
    with path.open("rb") as stream:
        return hash_stream(stream)


def beside(path: Path) -> Path:
    """A hidden name in the same folder that nobody else uses, to be renamed to `path`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def put_file(path: Path, content: str | bytes) -> Path:
    """Write a file whole or not at all. Folders are made where they lack."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = beside(path)
    try:
        new.write_bytes(content.encode() if isinstance(content, str) else content)
        return new.replace(path)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def put_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, renamed to `path` when the block ends well, else removed.

    Where another process has made `path` in the meantime, that one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = beside(path)
    new.mkdir()
    try:
        yield new
        try:
            new.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        if new.exists():
            shutil.rmtree(new)
