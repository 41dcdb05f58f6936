"""The access log: one line an answer. Never a query, a token or a raw control character."""

from __future__ import annotations

import logging
import sys
from datetime import datetime, timezone

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.http import HttpProcessingError

from flash_attn3_sm121.hub.server.replies import FileReply

ACCESS = logging.getLogger("flash_attn3_sm121.hub.server.access")
_LONGEST = 512


def printable(text: str) -> str:
    """Text from outside, made safe for a terminal and for whoever splits the log at its quotes."""
    short = text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
    return short.encode("ascii", "backslashreplace").decode().translate(_ESCAPES)


_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x22, 0x7F)}


class AccessLogger(AbstractAccessLogger):
    """aiohttp's hook."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        at = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        length = response.content_length if request.method != "HEAD" else 0
        path = printable(request.rel_url.raw_path)
        note = f" ({printable(response.stopped)})" if isinstance(response, FileReply) and response.stopped else ""
        agent = printable(request.headers.get("User-Agent", "-"))
        self.logger.info(
            f'{request.remote or "-"} {at} "{printable(request.method)} {path}" '
            f'{response.status} {length or 0} {time:.3f}s "{agent}"{note}'
        )


def configure(*, access: bool) -> None:
    """Log lines to stderr, as they are."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger("flash_attn3_sm121.hub.server")
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    root.propagate = False
    ACCESS.disabled = not access
    aio = logging.getLogger("aiohttp.server")
    aio.handlers[:] = [handler]
    aio.filters[:] = [without_traceback]
    aio.propagate = False
    aio.setLevel(logging.ERROR)


def without_traceback(record: logging.LogRecord) -> bool:
    """What is no HTTP is the client's fault, and worth one line where aiohttp would print thirty."""
    kind = record.exc_info[0] if record.exc_info else None
    if kind is not None and issubclass(kind, HttpProcessingError):
        record.msg = f"{printable(record.getMessage())}: {kind.__name__}"
        record.args, record.exc_info, record.exc_text = (), None, None
    return True
