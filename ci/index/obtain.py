"""Get a pinned file: the whole of it, resumed and checked by sha256, or parts of it through range requests."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ci.cache.folders import locked
from ci.console import Narrator, Progress
from ci.index.config import IndexConfig
from ci.index.http import NETWORK_ERRORS, NotRangeable, open_url, shown
from ci.index.locate import Wanted, candidates
from flash_attn3_sm121.errors import FetchError

CHUNK = 1 << 18
ATTEMPTS = 5
BLOCK = 2 << 20  # what one range request asks for: headers lie side by side in a wheel


@contextmanager
def obtained(
    wanted: Wanted,
    cache: Path,
    config: IndexConfig,
    narrate: Narrator,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Path]:
    """The file, checked, for the length of the block; it is removed afterwards, as what is unpacked from it is kept.

    A download that was cut off (even by kill -9) goes on where it stopped. Raises FetchError with the whole trace.
    """
    folder = cache / "downloads" / wanted.sha256
    with locked(cache, wanted.sha256, waiting=lambda: narrate.note(f"waiting for another run: {wanted.filename}")):
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / wanted.filename
        if not (file.is_file() and _sha256(file) == wanted.sha256):
            _from_anywhere(wanted, file, config, narrate, sleep)
        yield file
        for name in (file, _partial(file)):
            name.unlink(missing_ok=True)
        folder.rmdir()


def _partial(file: Path) -> Path:
    return file.with_name(file.name + ".part")


def _from_anywhere(
    wanted: Wanted, file: Path, config: IndexConfig, narrate: Narrator, sleep: Callable[[float], None]
) -> None:
    refusals: list[str] = []
    for link in candidates(wanted, config, refusals):
        try:
            _download(link.url, wanted, file, config, narrate, sleep)
            return
        except FetchError as error:
            refusals.append(str(error))
    trace = "".join(f"\n  - {refusal}" for refusal in refusals)
    raise FetchError(
        f"could not get {wanted.filename} (sha256 {wanted.sha256}); tried:{trace}",
        hint="check the network and pip's configuration (`pip config list`), or put the file into a folder and "
        "set PIP_FIND_LINKS to it",
    )


def _download(
    url: str, wanted: Wanted, file: Path, config: IndexConfig, narrate: Narrator, sleep: Callable[[float], None]
) -> None:
    partial = _partial(file)
    narrate.note(f"fetching {shown(url)}")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _receive(url, partial, config, narrate, wanted.filename)
        except (FetchError, *NETWORK_ERRORS) as error:
            if attempt == ATTEMPTS or config.offline or _is_final(error):
                raise FetchError(f"{shown(url)}: {error} (attempt {attempt} of {ATTEMPTS})") from error
            narrate.note(f"{wanted.filename}: {error}; trying again, attempt {attempt + 1} of {ATTEMPTS}")
            sleep(2.0 ** (attempt - 1))
            continue
        found = _sha256(partial)
        if found == wanted.sha256:
            partial.replace(file)
            return
        partial.unlink()
        raise FetchError(f"{shown(url)}: expected sha256 {wanted.sha256}, found {found}")


def _is_final(error: BaseException) -> bool:
    """Whether asking again cannot help: the server answered that it will not serve the file."""
    cause = error.__cause__
    code = getattr(cause, "code", None)
    return isinstance(code, int) and 400 <= code < 500 and code not in (408, 425, 429)


def _receive(url: str, partial: Path, config: IndexConfig, narrate: Narrator, label: str) -> None:
    """Append to the partial file what is missing of it, or start over where the server cannot resume."""
    start = partial.stat().st_size if partial.is_file() else 0
    try:
        answer = open_url(url, config, start=start)
    except FetchError as error:
        if not start or not (isinstance(error, NotRangeable) or getattr(error.__cause__, "code", None) == 416):
            raise
        start = 0
        answer = open_url(url, config)
    with answer, partial.open("r+b" if start else "wb") as sink:
        length = getattr(answer, "headers", {}).get("Content-Length")
        total = start + int(length) if length else None
        sink.seek(start)
        with narrate.progress(label, total) as progress:
            progress.done = float(start)
            while chunk := answer.read(CHUNK):
                sink.write(chunk)
                progress.advance(len(chunk))
            if total is not None and progress.done < total:
                raise FetchError(f"the connection ended at {progress.done:.0f} of {total} bytes")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as source:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class RangeFile(io.RawIOBase):
    """A remote file that can be read and sought in; each block is asked for once. Raises FetchError while reading."""

    def __init__(self, url: str, config: IndexConfig, progress: Progress) -> None:
        super().__init__()
        self.url, self.config, self.progress = url, config, progress
        self.blocks: dict[int, bytes] = {}
        self.position = 0
        with open_url(url, config, start=0, end=0) as answer:
            span = getattr(answer, "headers", {}).get("Content-Range", "")
        size = span.rpartition("/")[2]
        if not size.isdigit():
            raise NotRangeable(f"{shown(url)}: no size in Content-Range {span!r}")
        self.size = int(size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def read(self, size: int = -1) -> bytes:
        stop = self.size if size < 0 else min(self.size, self.position + size)
        pieces = []
        while self.position < stop:
            number, offset = divmod(self.position, BLOCK)
            piece = self._block(number)[offset : offset + stop - self.position]
            pieces.append(piece)
            self.position += len(piece)
        return b"".join(pieces)

    def _block(self, number: int) -> bytes:
        if number not in self.blocks:
            start = number * BLOCK
            end = min(self.size, start + BLOCK) - 1
            try:
                with open_url(self.url, self.config, start=start, end=end) as answer:
                    body = answer.read()
            except NETWORK_ERRORS as error:
                raise FetchError(f"{shown(self.url)}: {error}") from error
            if len(body) != end - start + 1:
                raise FetchError(f"{shown(self.url)}: expected {end - start + 1} bytes at {start}, found {len(body)}")
            self.blocks[number] = body
            self.progress.advance(len(body))
        return self.blocks[number]


@contextmanager
def opened_ranges(wanted: Wanted, config: IndexConfig, narrate: Narrator) -> Iterator[RangeFile]:
    """The remote file, read in parts. Its sha256 is not checked: whoever uses it must check what was read.

    Raises FetchError where no place serves ranges; the whole file by `obtained` is then the way.
    """
    refusals: list[str] = []
    for link in candidates(wanted, config, refusals):
        progress = narrate.progress(f"parts of {wanted.filename}")
        try:
            remote = RangeFile(link.url, config, progress)
        except FetchError as error:
            refusals.append(str(error))
            continue
        with progress:
            yield remote
        return
    raise NotRangeable(f"no place serves parts of {wanted.filename}:" + "".join(f"\n  - {r}" for r in refusals))
