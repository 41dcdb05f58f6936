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
AT_ONCE, PIECE = 2 << 20, 256 << 10
MOST_KEPT, KEPT_OVERHEAD = 32 << 20, 4 << 10
SERVER = {"Server": "flash-attn3"}
log = logging.getLogger("flash_attn3_sm121.hub.server")
access = logging.getLogger(f"{log.name}.access")
Key = tuple[str, str | None, str | None]  # path, Accept, Accept-Encoding


def dressed(answer: Answer, length: int) -> dict[str, str]:
    """All headers of an answer with so many bytes, but for the date."""
    size = {} if answer.status == 304 else {"Content-Length": str(length)}
    return {**SERVER, **HEADERS, **answer.headers, **size}


class Sent(web.StreamResponse):
    """A part of an open file, from byte `start` to the one before `stop`. Closes the file."""

    def __init__(self, answer: Answer, file: BinaryIO, start: int, stop: int) -> None:
        super().__init__(status=answer.status, headers=dressed(answer, stop - start))
        self._file, self._at, self._stop = file, start, stop

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        with self._file:
            writer = await super().prepare(request)
            transport = request.transport
            if transport is None:
                raise ConnectionResetError("the client is gone")
            try:
                if transport.get_extra_info("sslcontext") is not None:
                    await self._copy()
                    return writer
                await asyncio.sleep(0)  # uvloop writes when its turn ends
                transport.set_write_buffer_limits(high=0)
                await request.writer.drain()  # now the headers are out, and whatever came before them
                transport.set_write_buffer_limits()
                if transport.is_closing():  # its descriptor may be somebody else's by now
                    raise ConnectionResetError("the client is gone")
                await self._send(os.dup(transport.get_extra_info("socket").fileno()))
            except (OSError, RuntimeError) as error:  # uvloop has a RuntimeError for transports that are closed
                raise ConnectionResetError("the client is gone, or the disk") from error
            return writer

    async def _send(self, sock: int) -> None:
        """Have the kernel send the bytes: what asyncio calls `loop.sendfile`, which uvloop does not have."""
        loop, at, stop, writable = asyncio.get_running_loop(), self._at, self._stop, asyncio.Event()
        loop.add_writer(sock, writable.set)
        try:
            while at < stop:
                asked = min(stop - at, AT_ONCE)
                writable.clear()
                try:
                    count = os.sendfile(sock, self._file.fileno(), at, asked)
                except BlockingIOError:
                    count = -1
                if count == 0:
                    raise OSError("the file became shorter while it was sent")
                at += max(count, 0)
                if count == asked:
                    await asyncio.sleep(0)  # others have their turn
                else:
                    await writable.wait()
        finally:
            loop.remove_writer(sock)
            os.close(sock)

    async def _copy(self) -> None:
        """Read and write the bytes in pieces, for TLS to encrypt."""
        self._file.seek(self._at)
        for at in range(self._at, self._stop, PIECE):
            piece = await asyncio.to_thread(self._file.read, min(PIECE, self._stop - at))
            if not piece:
                raise OSError("the file became shorter while it was sent")
            await self.write(piece)


class Ready(web.StreamResponse):
    """A small answer that is kept: one object for every request on a connection that stays open."""

    def __init__(self, headers: Mapping[str, str], data: bytes) -> None:
        super().__init__(headers=headers)
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        self.head = "".join(["HTTP/1.1 200 OK\r\n", *lines, "Date: "]).encode()
        self.data = b"\r\n\r\n" + data

    @property
    def keep_alive(self) -> bool:
        return True

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        date = rfc822_formatted_time()
        if request.version.minor == 0:  # HTTP/1.0 has to be told that the connection stays open
            date += "\r\nConnection: keep-alive"
        transport.write(self.head + date.encode() + self.data)
        if request.protocol.writing_paused:
            await request.writer.drain()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """All was sent."""


@dataclass(kw_only=True)
class Front:
    """Turns requests into the application's questions, and its answers into responses."""

    app: App
    # Small answers to questions without conditions or ranges. Their bytes were hashed.
    ready: dict[Key, Ready] = field(default_factory=dict)
    kept: int = 0  # bytes in `ready`
    _loads: int = -1  # App.loads when the answers in `ready` were made

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        asked, app = request.headers, self.app
        more = hdrs.RANGE in asked or hdrs.IF_NONE_MATCH in asked or hdrs.IF_MATCH in asked or hdrs.IF_RANGE in asked
        key = (request.raw_path, asked.get(hdrs.ACCEPT), asked.get(hdrs.ACCEPT_ENCODING))
        plain = request.method == "GET" and request.keep_alive and not more
        plain = plain and allowed(app.config.token, asked.get(hdrs.AUTHORIZATION))
        ready = self.ready.get(key) if plain else None
        if ready is not None and app.loads == self._loads and app.up_to_date():
            return ready
        loads = app.loads
        answer = await app.answer(request.method, request.path, asked)
        if isinstance(answer.body, tuple) and request.method != "HEAD" and answer.body[2] > answer.body[1]:
            path, start, stop = answer.body
            try:
                return Sent(answer, path.open("rb"), start, stop)
            except OSError:  # no descriptors are left, or the file is gone since it was looked at
                return self._whole(refuse(503, headers={"Retry-After": "1"}), request.method)
        if plain and answer.status == 200 and len(answer.body) <= SMALL and app.loads == loads:
            self._keep(key, answer)
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
        assert isinstance(answer.body, bytes)
        self.kept += len(answer.body) + sum(len(part or "") for part in key) + KEPT_OVERHEAD
        self.ready[key] = Ready(dressed(answer, len(answer.body)), answer.body)


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
    """All connections: at most `most` at once."""

    def __init__(self, front: Front, most: int) -> None:
        super().__init__(front)
        self.front = front
        self.free = asyncio.Semaphore(most)

    def __call__(self) -> Handler:
        return Handler(self)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self.free.release()

    async def accept(self, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Take connections for ever; none while as many as allowed are open."""
        loop, welcomed = asyncio.get_running_loop(), set[asyncio.Task[None]]()
        while True:
            await self.free.acquire()
            try:
                client, _ = await loop.sock_accept(sock)
            except OSError:  # no descriptors are left, or the client is gone already
                self.free.release()
                await asyncio.sleep(ACCEPT_AGAIN_SECONDS)
                continue
            task = loop.create_task(self._welcome(client, tls))
            welcomed.add(task)
            task.add_done_callback(welcomed.discard)

    async def _welcome(self, client: socket.socket, tls: ssl.SSLContext | None) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self, client, ssl=tls, ssl_handshake_timeout=HEADER_SECONDS if tls else None
            )
        except (OSError, RuntimeError):  # no handshake, none in time, or the client is gone
            client.close()
            self.free.release()


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
    """Announce, and serve until SIGTERM or SIGINT; then downloads get some seconds to finish."""
    log_to_stderr(requests=config.access_log)
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = Server(Front(app=App.of(config)), most)
    announce()
    jobs = {loop.create_task(server.accept(sock, tls)), loop.create_task(stop.wait())}
    done, pending = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    sock.close()
    log.info("Shutting down: downloads get %d seconds", STOP_SECONDS)
    await server.shutdown(STOP_SECONDS / 2)  # aiohttp waits that long twice
    for task in done:
        task.result()
