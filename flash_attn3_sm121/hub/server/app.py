"""The server's application: looks an address up in the signed index and says what goes out (server/http.py sends it).

Nothing is rendered here: every answer is a file of the tree that publishing wrote, or a refusal.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from flash_attn3_sm121.errors import HubError, IntegrityError
from flash_attn3_sm121.hub.index import FileEntry, Index
from flash_attn3_sm121.hub.server.config import CHALLENGE, ServeConfig, allowed
from flash_attn3_sm121.hub.server.files import (
    Files,
    GoneError,
    UnsatisfiableError,
    accepts_gzip,
    identity,
    named,
    select,
)
from flash_attn3_sm121.hub.site.address import INDEX_HTML, INDEX_JSON, Directory, Found, content_type
from flash_attn3_sm121.hub.site.nginx import IMMUTABLE
from flash_attn3_sm121.hub.site.simple import JSON_TYPE
from flash_attn3_sm121.hub.site.tree import etag_of, time_of
from flash_attn3_sm121.hub.store import Generation, Hub

RETRY_SECONDS = 2.0
SMALL = 256 << 10  # answers of up to this size are kept in memory
MOST_SAID = 1000
ZIP_FROM, ZIP_TO = 512, 8 << 20
ZIPPED = ("application/json", JSON_TYPE, "text/")
MESSAGES = {
    400: "this is no HTTP request",
    401: "this hub needs its token",
    404: "there is nothing under this address",
    405: "this hub is read-only",
    409: "this file does not match its recorded hash and is not served",
    410: "this file is missing from the hub folder; ask whoever runs it for `hub check`",
    412: "the precondition does not hold",
    416: "the range lies outside the file",
    500: "the server failed; its log says why",
    503: "the file cannot be read now",
}
log = logging.getLogger("flash_attn3_sm121.hub.server")


class Headers(Protocol):
    """A request's headers, whatever the case of their names."""

    def get(self, name: str, /) -> str | None: ...


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a request. `body` is bytes, or (file, first byte, byte behind the last)."""

    status: int
    headers: Mapping[str, str]
    body: bytes | tuple[Path, int, int] = b""


def refuse(status: int, *, code: str = "", headers: Mapping[str, str] | None = None) -> Answer:
    """An error in the dialect of huggingface_hub. Nothing that a client sent is ever echoed."""
    text = f'{{"error": "{code or MESSAGES[status]}"}}\n'.encode()
    extra = {"X-Error-Code": code} if code else {}
    kind = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return Answer(status=status, headers={**kind, **extra, **(headers or {})}, body=text)


@dataclass(kw_only=True)
class App:
    """Answers requests from the newest generation. A publish shows with the next request."""

    config: ServeConfig
    hub: Hub
    files: Files
    _pointer: str  # the path of CURRENT
    trouble: str = ""  # why the newest generation cannot be read, while an older one is being served
    _directory: Directory | None = None
    _current: Generation = field(default_factory=lambda: Generation(index=Index()))
    _stamp: tuple[int, ...] = ()
    _retry_at: float = 0.0
    _loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    _said: set[str] = field(default_factory=set)
    loads: int = 0  # how often a generation was read: answers from before the last time count no more

    @classmethod
    def of(cls, config: ServeConfig) -> App:
        hub = Hub.open(Path(config.root))
        return cls(config=config, hub=hub, files=Files(layout=hub.layout), _pointer=str(hub.layout.current))

    # The current generation

    def _look(self) -> tuple[int, ...]:
        try:
            return identity(os.stat(self._pointer))  # noqa: PTH116 (on every request: a plain system call)
        except OSError:
            return ()

    def up_to_date(self) -> bool:
        """Whether nobody has published since a generation was read."""
        return self._stamp == self._look()

    async def directory(self) -> Directory:
        stamp = self._look()
        if self._directory is None or stamp != self._stamp or (self.trouble and time.monotonic() >= self._retry_at):
            async with self._loading:
                if self._directory is None or stamp != self._stamp or self.trouble:
                    await asyncio.get_running_loop().run_in_executor(None, self._load, stamp)
        assert self._directory is not None
        return self._directory

    def _load(self, stamp: tuple[int, ...]) -> None:
        """Read the current generation. When that fails, what was served before goes on being served."""
        try:
            hub = Hub.open(self.hub.layout.root)  # a folder that was unmounted is trouble, not an empty hub
            self._current = hub.current()
            self._directory = Directory(index=self._current.index, read_manifest=hub.manifest)
            self.trouble = ""
        except (HubError, OSError) as error:
            if self._directory is None:
                raise
            if not self.trouble:
                log.error("the new generation cannot be read, the old one is still served: %s", error)
            self.trouble, self._retry_at = str(error), time.monotonic() + RETRY_SECONDS
        self._stamp = stamp
        self.loads += 1

    # Answers

    async def answer(self, method: str, path: str, headers: Headers) -> Answer:
        """The answer to a request."""
        if method not in ("GET", "HEAD"):
            return refuse(405, headers={"Allow": "GET, HEAD"})
        if path != "/healthz" and not allowed(self.config.token, headers.get("authorization")):
            return refuse(401, headers={"WWW-Authenticate": CHALLENGE})
        try:
            return await self._find(method, path[1:], headers)
        except IntegrityError as error:  # an object, or a revision's list of files, is damaged
            return self._refused(error)

    async def _find(self, method: str, path: str, headers: Headers) -> Answer:
        directory = await self.directory()
        if path in ("hub/generation.json", "hub/generation.sig"):
            data = self._current.data if path.endswith(".json") else self._current.signature
            if not data:
                return refuse(404)
            entry = FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
            return await self._file(method, Found(path=path, entry=entry), headers, data)
        found, redirect = locate(directory, path, headers.get("accept") or "")
        if redirect is not None:
            status, place = redirect
            return Answer(status=status, headers={"Location": place, "Cache-Control": "no-cache"})
        if found is None:
            return await self._missing(directory, path, headers)
        if path == "healthz" and self.trouble:
            text = f'{{"status": "stale", "generation": {directory.index.generation}}}\n'
            return Answer(status=503, headers={"Content-Type": "application/json"}, body=text.encode())
        return await self._file(method, found, headers)

    async def _missing(self, directory: Directory, path: str, headers: Headers) -> Answer:
        page = directory.find("404.html")
        machine = path.startswith(("api/", "simple/", "files/")) or "/resolve/" in path
        if page is not None and not machine and "text/html" in (headers.get("accept") or ""):
            kind = {"Content-Type": content_type("404.html"), "Cache-Control": "no-store"}
            return Answer(status=404, headers=kind, body=(await self.files.path(page.entry), 0, page.entry.size))
        hugging = path.startswith("api/") or "/resolve/" in path
        return refuse(404, code=directory.missing(path) if hugging else "")

    async def _file(self, method: str, found: Found, headers: Headers, data: bytes | None = None) -> Answer:
        """A file (or `data`, for what is no object) with its ETag, conditional requests, one range, gzip for texts."""
        entry, etag = found.entry, etag_of(found.entry)
        index = found.path.startswith("simple/")
        kind = JSON_TYPE if index and found.path.endswith(".json") else content_type(found.path)
        wanted = headers.get("range") if method == "GET" else None
        text = kind.startswith(ZIPPED) and ZIP_FROM <= entry.size <= ZIP_TO
        zipped = text and wanted is None and accepts_gzip(headers.get("accept-encoding"))
        out = {
            "ETag": f"W/{etag}" if zipped else etag,
            "Last-Modified": formatdate(time_of(entry), usegmt=True),
            "Cache-Control": self._cache(found),
            **({"X-Repo-Commit": found.commit} if found.commit else {}),
        }
        vary = [name for name, given in (("Accept", index), ("Accept-Encoding", text)) if given]
        out |= {"Vary": ", ".join(vary)} if vary else {}
        path = await self.files.path(entry) if data is None else None
        if_match, if_none_match = headers.get("if-match"), headers.get("if-none-match")
        if if_match is not None and not named(if_match, etag, weak=False):
            return refuse(412, headers={"ETag": etag})
        if if_none_match is not None and named(if_none_match, etag, weak=True):
            return Answer(status=304, headers=out)
        try:
            span = select(entry.size, etag, range_header=wanted, if_range=headers.get("if-range"))
        except UnsatisfiableError:
            return refuse(416, headers={"Content-Range": f"bytes */{entry.size}"})
        out["Content-Type"] = kind
        if zipped:
            out["Content-Encoding"] = "gzip"
        else:
            out["Accept-Ranges"] = "bytes"
        if span is not None:
            out["Content-Range"] = f"bytes {span[0]}-{span[1] - 1}/{entry.size}"
        start, stop = span or (0, entry.size)
        status = 206 if span else 200
        if path is not None and not zipped and (span or entry.size > SMALL):
            return Answer(status=status, headers=out, body=(path, start, stop))

        def read() -> bytes:
            whole = self.hub.read(entry) if data is None else data
            return gzip.compress(whole, 6, mtime=0) if zipped else whole

        body = await asyncio.get_running_loop().run_in_executor(None, read) if zipped else read()
        return Answer(status=status, headers=out, body=body[start:stop] if span else body)

    def complain(self, text: str, error: BaseException | None = None) -> None:
        """A line in the log, once for each text: a log must not grow by asking."""
        if text not in self._said and len(self._said) < MOST_SAID:
            self._said.add(text)
            log.error("%s", text, exc_info=error)

    def _refused(self, error: IntegrityError) -> Answer:
        self.complain(f"refused: {error.args[0]}")
        return refuse(410 if isinstance(error, GoneError) else 409)

    def _cache(self, found: Found) -> str:
        if not found.fixed:
            return "no-cache"
        return IMMUTABLE.replace("public", "private") if self.config.token else IMMUTABLE


def locate(directory: Directory, path: str, accept: str) -> tuple[Found | None, tuple[int, str] | None]:
    """(the file at an address, status and Location of a redirect). A folder's address ends in a slash."""
    if path.startswith("api/"):
        return directory.find(f"{path.rstrip('/')}/{INDEX_JSON}") or directory.find(path), None
    parts = path.rstrip("/").split("/")
    if parts[0] == "kernels" and len(parts) == 3:
        up = "../" * (path.count("/"))
        return None, (302, f"{up}{quote(parts[1])}/{quote(parts[2])}/")
    if path == "" or path.endswith("/"):
        as_json = path.startswith("simple/") and JSON_TYPE in accept
        return directory.find(path + (INDEX_JSON if as_json else INDEX_HTML)), None
    found = directory.find(path)
    if found is None and f"{path}/{INDEX_HTML}" in directory.index.site:
        return None, (301, f"{quote(parts[-1])}/")
    return found, None
