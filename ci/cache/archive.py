"""Unpacking of archives from elsewhere: plain files only, never outside the folder given, executable bits kept."""

from __future__ import annotations

import errno
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from flash_attn3_sm121.errors import DiskError, FetchError


def check_name(name: str, archive: str) -> None:
    """Refuse a member name that would leave the folder it is unpacked to."""
    if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
        raise FetchError(f"{archive}: refused, a member leaves the folder: {name!r}")


@contextmanager
def _failures_named(archive: str, into: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "make room, or have FA3_CACHE=DIR put the content cache on another disk"
            raise DiskError(f"cannot unpack {archive}: no space left on the disk of {into}", hint=hint) from error
        raise FetchError(f"cannot unpack {archive}: {error}") from error


def unpack_tar(file: Path, prefix: str, folders: Sequence[str], into: Path) -> int:
    """Unpack `prefix/<folder>/**` of a compressed tar to `into/<folder>/**`; returns the number of files."""
    heads = tuple(f"{prefix}/{folder}/" for folder in folders)
    count = 0
    with _failures_named(file.name, into), tarfile.open(file, mode="r|*") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            check_name(name, file.name)
            if not (name + "/").startswith(heads) or member.isdir():
                continue
            source = archive.extractfile(member) if member.isreg() else None
            if source is None:
                raise FetchError(f"{file.name}: refused, neither a file nor a folder: {name!r}")
            _write(source, into / name[len(prefix) + 1 :], bool(member.mode & 0o100), file.name)
            count += 1
    return count


def unpack_zip(source: Path | zipfile.ZipFile, archive: str, heads: dict[str, str], into: Path) -> int:
    """Unpack the members below each key of `heads` to its value below `into`; returns the number of files."""
    count = 0
    with (
        _failures_named(archive, into),
        source if isinstance(source, zipfile.ZipFile) else zipfile.ZipFile(source) as zipped,
    ):
        for member in zipped.infolist():
            check_name(member.filename, archive)
            head = next((h for h in heads if member.filename.startswith(h + "/")), None)
            if head is None or member.is_dir():
                continue
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                raise FetchError(f"{archive}: refused, neither a file nor a folder: {member.filename!r}")
            relative = member.filename[len(head) + 1 :]
            with zipped.open(member) as content:
                _write(content, into / heads[head] / relative, bool(mode & 0o100), archive)
            count += 1
    return count


def _write(source: IO[bytes], target: Path, executable: bool, archive: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("xb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    except FileExistsError as error:
        raise FetchError(f"{archive}: refused, a member comes twice: {target.name!r}") from error
    target.chmod(0o755 if executable else 0o644)
