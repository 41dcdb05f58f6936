"""HTTP, by aiohttp: sends what the application answers, and keeps small answers in memory for whoever asks the same.

A file goes from the disk to the network inside the kernel (sendfile), as nginx sends it; under TLS it is read.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from aiohttp import hdrs, web
from aiohttp.abc import AbstractAccessLogger, AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time

from flash_attn3_sm121.hub.server.app import SMALL, Answer, App, refuse
from flash_attn3_sm121.hub.server.config import ServeConfig, allowed
from flash_attn3_sm121.hub.site.nginx import HEADERS

HEADER_SECONDS = 10  # for a request's headers, and for the next request on a connection that stays open
BODY_SECONDS = 1  # for a body, which nobody here wants
STOP_SECONDS = 5  # that downloads get to finish
ACCEPT_AGAIN_SECONDS = 0.05
AT_ONCE, PIECE = 4 << 20, 256 << 10
MOST_KEPT, KEPT_OVERHEAD = 32 << 20, 4 << 10
SERVER = {"Server": "flash-attn3"}
log = logging.getLogger("flash_attn3_sm121.hub.server")
access = logging.getLogger(f"{log.name}.access")
Key = tuple[str, str | None, str | None, bool]  # path, Accept, Accept-Encoding, whether the connection stays open


def dressed(answer: Answer, length: int) -> dict[str, str]:
    """All headers of an answer with so many bytes, but for the date."""
    size = {} if answer.status == 304 else {"Content-Length": str(length)}
    return {**SERVER, **HEADERS, **answer.headers, **size}


class Written(web.StreamResponse):
    """An answer whose head is made here: aiohttp takes longer for it, and a client waits for the first byte."""

    def __init__(self, status: int, headers: Mapping[str, str], *, keep_alive: bool) -> None:
        super().__init__(status=status)
        self._keep_alive = keep_alive
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        self._head = "".join([f"HTTP/1.1 {status} {self.reason}\r\n", *lines, "Date: "]).encode()

    def head(self, request: web.BaseRequest) -> bytes:
        """All of it, with the date of now."""
        date = rfc822_formatted_time()
        if not self._keep_alive:
            date += "\r\nConnection: close"
        elif request.version.minor == 0:  # HTTP/1.0 has to be told that the connection stays open
            date += "\r\nConnection: keep-alive"
        return self._head + date.encode() + b"\r\n\r\n"

    async def write_eof(self, data: bytes = b"") -> None:
        """All was sent."""


class Sent(Written):
    """A part of an open file, from byte `start` to the one before `stop`. Closes the file."""

    def __init__(self, answer: Answer, file: BinaryIO, start: int, stop: int, *, keep_alive: bool) -> None:
        super().__init__(answer.status, dressed(answer, stop - start), keep_alive=keep_alive)
        self._file, self._at, self._stop = file, start, stop

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        with self._file:
            transport = request.transport
            try:
                if transport is None or transport.is_closing():
                    raise ConnectionResetError("the client is gone")
                if transport.get_extra_info("sslcontext") is None:
                    await self._send(request, transport)
                else:
                    await self._copy(request, transport)
            except (OSError, RuntimeError) as error:  # uvloop has a RuntimeError for transports that are closed
                raise ConnectionResetError("the client is gone, or the disk") from error
        return None

    async def _send(self, request: web.BaseRequest, transport: asyncio.Transport) -> None:
        """Have the kernel send the bytes: what asyncio calls `loop.sendfile`, which uvloop does not have."""
        transport.set_write_buffer_limits(high=0)  # uvloop writes at once
        transport.write(self.head(request))
        await request.writer.drain()  # now the head is out, and whatever came before it
        transport.set_write_buffer_limits()
        if transport.is_closing():  # its descriptor may be somebody else's by now
            raise ConnectionResetError("the client is gone")
        sock = os.dup(transport.get_extra_info("socket").fileno())
        loop = asyncio.get_running_loop()
        sent = loop.create_future()
        try:
            self._send_some(sock, sent)
            if not sent.done():
                loop.add_writer(sock, self._send_some, sock, sent)
            await sent
        finally:
            loop.remove_writer(sock)
            os.close(sock)

    def _send_some(self, sock: int, sent: asyncio.Future[None]) -> None:
        """Send as much as the client has room for, and a piece at the most: others have their turn."""
        if sent.done():
            return
        try:
            count = os.sendfile(sock, self._file.fileno(), self._at, min(self._stop - self._at, AT_ONCE))
        except BlockingIOError:
            return
        except OSError as error:
            sent.set_exception(error)
            return
        self._at += count
        if count == 0:
            sent.set_exception(OSError("the file became shorter while it was sent"))
        elif self._at == self._stop:
            sent.set_result(None)

    async def _copy(self, request: web.BaseRequest, transport: asyncio.Transport) -> None:
        """Read and write the bytes in pieces, for TLS to encrypt."""
        transport.write(self.head(request))
        while self._at < self._stop:
            size = min(PIECE, self._stop - self._at)
            piece = await asyncio.to_thread(os.pread, self._file.fileno(), size, self._at)
            if not piece:
                raise OSError("the file became shorter while it was sent")
            self._at += len(piece)
            transport.write(piece)
            await request.writer.drain()


class Ready(Written):
    """A small answer that is kept: one object for every request like the first."""

    def __init__(self, headers: Mapping[str, str], data: bytes, *, keep_alive: bool) -> None:
        super().__init__(200, headers, keep_alive=keep_alive)
        self.data = data

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        transport.write(self.head(request) + self.data)
        if request.protocol.writing_paused:
            await request.writer.drain()
        return None


@dataclass(kw_only=True)
class Front:
    """Turns requests into the application's questions, and its answers into responses."""

    app: App
    # Answers to requests without conditions or ranges: small ones with their bytes, which were hashed; of a large file
    # what to send, which counts while the file stays what was hashed.
    ready: dict[Key, Ready | Answer] = field(default_factory=dict)
    kept: int = 0  # bytes in `ready`
    _loads: int = -1  # App.loads when the answers in `ready` were made

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        asked, app = request.headers, self.app
        more = hdrs.RANGE in asked or hdrs.IF_NONE_MATCH in asked or hdrs.IF_MATCH in asked or hdrs.IF_RANGE in asked
        key = (request.raw_path, asked.get(hdrs.ACCEPT), asked.get(hdrs.ACCEPT_ENCODING), request.keep_alive)
        plain = request.method == "GET" and not more and allowed(app.config.token, asked.get(hdrs.AUTHORIZATION))
        kept = self.ready.get(key) if plain and app.loads == self._loads and app.up_to_date() else None
        if isinstance(kept, Ready):
            return kept
        if kept is not None and not (isinstance(kept.body, tuple) and app.files.unchanged(kept.body[0])):
            kept = None
        loads = app.loads
        answer = kept or await app.answer(request.method, request.path, asked)
        if kept is None and plain and answer.status == 200 and app.loads == loads:
            self._keep(key, answer)
        if isinstance(answer.body, tuple) and request.method != "HEAD" and answer.body[2] > answer.body[1]:
            path, start, stop = answer.body
            try:
                return Sent(answer, path.open("rb", buffering=0), start, stop, keep_alive=request.keep_alive)
            except OSError:  # no descriptors are left, or the file is gone since it was looked at
                return self._whole(refuse(503, headers={"Retry-After": "1"}), request.method)
        return self._whole(answer, request.method)

    def _whole(self, answer: Answer, method: str) -> web.Response:
        body = answer.body
        headers = dressed(answer, len(body) if isinstance(body, bytes) else body[2] - body[1])
        sent = body if method != "HEAD" and isinstance(body, bytes) else None
        return web.Response(status=answer.status, headers=headers, body=sent)

    def _keep(self, key: Key, answer: Answer) -> None:
        if self.kept > MOST_KEPT or self._loads != self.app.loads:
            self.ready.clear()
            self.kept, self._loads = 0, self.app.loads
        data = answer.body if isinstance(answer.body, bytes) else b""
        if len(data) <= SMALL:
            self.kept += len(data) + sum(len(part or "") for part in key[:3]) + KEPT_OVERHEAD
            small = isinstance(answer.body, bytes)
            self.ready[key] = Ready(dressed(answer, len(data)), data, keep_alive=key[3]) if small else answer


class Handler(web.RequestHandler):
    """A connection. Its errors are in our words: aiohttp's would show what the client sent."""

    def __init__(self, server: Server) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=HEADER_SECONDS,  # counts from the beginning of a connection, and of each pause
            lingering_time=BODY_SECONDS,
            access_log=access,
            access_log_class=AccessLog,
            logger=log,
        )
        self._complain = server.front.app.complain

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if status >= 500 and exc is not None:
            self._complain(f"{type(exc).__name__}: {exc}", exc)
        if request.writer.output_size > 0:
            raise ConnectionResetError("an answer was begun and cannot be finished")
        answer = refuse(500 if status >= 500 else 400)
        assert isinstance(answer.body, bytes)
        response = web.Response(status=answer.status, headers=dressed(answer, len(answer.body)), body=answer.body)
        response.force_close()
        return response


class AccessLog(AbstractAccessLogger):
    """A line for each request, without what stands behind a question mark."""

    @property
    def enabled(self) -> bool:
        return self.logger.isEnabledFor(logging.INFO)

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        place = request.rel_url.raw_path
        line = '%s "%s %s" %d %.3fms'
        self.logger.info(line, request.remote, request.method, place, response.status, time * 1000)


class Server(web.Server):
    """All connections to a socket: at most `most` at once."""

    def __init__(self, front: Front, sock: socket.socket, tls: ssl.SSLContext | None, most: int) -> None:
        super().__init__(front)
        self.front = front
        self._sock, self._tls, self._free = sock, tls, most
        self._welcomed = set[asyncio.Task[None]]()

    def __call__(self) -> Handler:
        return Handler(self)

    def listen(self) -> None:
        """Take connections as they come, unless as many as allowed are open."""
        if self._free > 0 and self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock, self._accept)

    def hang_up(self) -> None:
        """Take no more connections."""
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._left()

    def _left(self) -> None:
        self._free += 1
        if self._free == 1:
            self.listen()

    def _accept(self) -> None:
        try:
            client, _ = self._sock.accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptors are left, or the client is gone already
            self._loop.remove_reader(self._sock)
            self._loop.call_later(ACCEPT_AGAIN_SECONDS, self.listen)
            return
        self._free -= 1
        if self._free == 0:
            self._loop.remove_reader(self._sock)
        task = self._loop.create_task(self._welcome(client))
        self._welcomed.add(task)
        task.add_done_callback(self._welcomed.discard)

    async def _welcome(self, client: socket.socket) -> None:
        try:
            client.setblocking(False)
            await self._loop.connect_accepted_socket(
                self, client, ssl=self._tls, ssl_handshake_timeout=HEADER_SECONDS if self._tls else None
            )
        except (OSError, RuntimeError):  # no handshake, none in time, or the client is gone
            client.close()
            self._left()


def log_to_stderr(*, requests: bool) -> None:
    """Our own lines on stderr, one for each request where that is wanted, and none of asyncio's."""
    for logger, text in ((log, "%(message)s"), (access, "%(asctime)s %(message)s")):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(text))
        logger.handlers[:], logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    access.disabled = not requests
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it has a line for what each client does wrong


async def serve(
    config: ServeConfig, sock: socket.socket, tls: ssl.SSLContext | None, most: int, *, announce: Callable[[], None]
) -> None:
    """Announce, and serve until SIGTERM, SIGINT or SIGHUP; then downloads get some seconds to finish."""
    log_to_stderr(requests=config.access_log)
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    hung_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]  # nohup ignores it
    for number in (signal.SIGTERM, signal.SIGINT, *hung_up):
        loop.add_signal_handler(number, stop.set)
    server = Server(Front(app=App.of(config)), sock, tls, most)
    server.listen()
    announce()
    await stop.wait()
    server.hang_up()
    log.info("Shutting down: downloads get %d seconds", STOP_SECONDS)
    await server.shutdown(STOP_SECONDS / 2)  # aiohttp waits that long twice
