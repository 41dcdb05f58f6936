"""The three kinds of answer: a file of the hub (streamed), a text we made (gzip where asked for), a refusal."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import logging
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from aiohttp import web

from flash_attn3_sm121.errors import IntegrityError
from flash_attn3_sm121.hub.index import FileEntry
from flash_attn3_sm121.hub.server.conditional import (
    Span,
    UnsatisfiableError,
    Verdict,
    accepts_gzip,
    judge,
    select,
    strong_tag,
)
from flash_attn3_sm121.hub.server.vault import GoneError, Vault

log = logging.getLogger("flash_attn3_sm121.hub.server")

IMMUTABLE = "max-age=31536000, immutable"  # the URL names the content
REVALIDATE = "no-cache"  # kept, but asked for again each time (an ETag makes that cheap)
_GZIP_FROM = 512
# A client that takes less than one piece in this time holds a socket and gives nothing for it.
_PIECE = 8 << 20
_PIECE_SECONDS = 600.0
_COPY = 256 << 10
_TYPES = {
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".py": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".toml": "text/plain; charset=utf-8",
    ".metadata": "text/plain; charset=utf-8",
}


class FileReply(web.StreamResponse):
    """A file on its way; `stopped` says why it did not get there."""

    stopped: str = ""


def refuse(
    status: int, text: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A JSON error in the hub clients' dialect. `text` is ours alone: nothing a client sent is ever echoed."""
    extra = dict(headers or {})
    if code is not None:
        extra["X-Error-Code"] = code
    extra["X-Error-Message"] = text
    extra["Cache-Control"] = "no-store"
    return web.json_response({"error": text}, status=status, headers=extra)


def _compress(body: bytes) -> bytes:
    return gzip.compress(body, 6, mtime=0)


async def send_text(
    request: web.Request, text: str, content_type: str, *, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A text with ETag, conditional requests and gzip."""
    body = text.encode()
    zipped = len(body) >= _GZIP_FROM and accepts_gzip(request.headers.get("Accept-Encoding"))
    etag = hashlib.sha256(body).hexdigest()[:32] + ("-gz" if zipped else "")
    out = {"Cache-Control": REVALIDATE, "Vary": "Accept, Accept-Encoding", "ETag": strong_tag(etag), **(headers or {})}
    verdict = judge(etag, if_match=request.headers.get("If-Match"), if_none_match=request.headers.get("If-None-Match"))
    if verdict is Verdict.NOT_MODIFIED:
        return web.Response(status=304, headers=out)
    if verdict is Verdict.PRECONDITION_FAILED:
        return refuse(412, "the precondition does not hold", headers={"ETag": strong_tag(etag)})
    if zipped:
        body = await asyncio.get_running_loop().run_in_executor(None, _compress, body)
        out["Content-Encoding"] = "gzip"
    return web.Response(body=body, headers={**out, "Content-Type": content_type})


async def send_json(
    request: web.Request,
    value: Any,
    *,
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    return await send_text(request, json.dumps(value, ensure_ascii=False) + "\n", content_type, headers=headers)


async def send_file(
    request: web.Request, vault: Vault, entry: FileEntry, name: str, *, headers: Mapping[str, str]
) -> web.StreamResponse:
    """An object of the hub, proven first, then handed from the page cache to the socket by the kernel."""
    etag = entry.sha256
    out = {"ETag": strong_tag(etag), "Accept-Ranges": "bytes", **headers}
    try:
        file = await vault.open(entry)
    except GoneError as error:
        log.error("refused: %s", error)
        return refuse(410, "this file is missing from the hub folder; ask whoever runs it for `hub check`")
    except IntegrityError as error:
        log.error("refused: %s", error)
        return refuse(409, "this file does not match its recorded hash and is not served")
    with file:
        verdict = judge(
            etag, if_match=request.headers.get("If-Match"), if_none_match=request.headers.get("If-None-Match")
        )
        if verdict is Verdict.NOT_MODIFIED:
            return web.Response(status=304, headers=out)
        if verdict is Verdict.PRECONDITION_FAILED:
            return refuse(412, "the precondition does not hold", headers={"ETag": strong_tag(etag)})
        try:
            span = select(
                entry.size,
                etag,
                range_header=request.headers.get("Range") if request.method == "GET" else None,
                if_range=request.headers.get("If-Range"),
            )
        except UnsatisfiableError:
            return refuse(416, "the range lies outside the file", headers={"Content-Range": f"bytes */{entry.size}"})
        out["Content-Type"] = _TYPES.get(PurePosixPath(name).suffix, "application/octet-stream")
        out["Content-Length"] = str(span.count)
        if span.partial:
            out["Content-Range"] = span.content_range
        response = FileReply(status=206 if span.partial else 200, headers=out)
        await _stream(request, response, file, span)
        return response


async def _stream(request: web.Request, response: FileReply, file: io.FileIO, span: Span) -> None:
    await response.prepare(request)
    transport = request.transport
    if request.method == "HEAD" or span.count == 0:
        await response.write_eof()
        return
    if transport is None:
        raise ConnectionResetError("the client went away")
    loop, offset, stop = asyncio.get_running_loop(), span.start, span.start + span.count
    native = transport.get_extra_info("sslcontext") is None
    try:
        while offset < stop:
            count = min(_PIECE if native else _COPY, stop - offset)
            if native:
                sent = await asyncio.wait_for(loop.sendfile(transport, file, offset, count), _PIECE_SECONDS)
            else:  # the kernel cannot encrypt for us
                chunk = await loop.run_in_executor(None, _read_at, file, offset, count)
                await asyncio.wait_for(response.write(chunk), _PIECE_SECONDS)
                sent = len(chunk)
            if sent == 0:
                raise ConnectionResetError("the file became shorter while it was sent")
            offset += sent
        await response.write_eof()
    except (asyncio.TimeoutError, ConnectionError) as error:
        # Too slow, gone, or not whole: the connection ends, so that nobody takes the part for the whole.
        # Not raised further: aiohttp would take it for a fault of ours.
        response.stopped = f"stopped after {offset - span.start} of {span.count} bytes: {error or 'too slow'}"
        transport.abort()


def _read_at(file: io.FileIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count) or b""
