"""The processes: one listening socket, one or more workers, an orderly end."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import ssl
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.http import RawRequestMessage
from multidict import CIMultiDictProxy

from flash_attn3_sm121.errors import ServeError
from flash_attn3_sm121.hub.server.accesslog import ACCESS, AccessLogger
from flash_attn3_sm121.hub.server.app import build
from flash_attn3_sm121.hub.server.catalog import Shelf
from flash_attn3_sm121.hub.server.config import ServeConfig
from flash_attn3_sm121.hub.server.metrics import Metrics
from flash_attn3_sm121.hub.server.state import State
from flash_attn3_sm121.hub.server.vault import Vault
from flash_attn3_sm121.hub.store import Hub

log = logging.getLogger("flash_attn3_sm121.hub.server")

_BACKLOG = 1024
_GRACE = 10.0  # seconds that downloads get to finish after the first SIGTERM or Ctrl-C
_KEEPALIVE = 75.0
_LINGER = 2.0  # how long a refused upload is read on, so that its sender gets to see the refusal
_RESTART_PAUSE = 1.0


def listen(config: ServeConfig) -> socket.socket:
    """The bound socket; raises ServeError in words where the address cannot be had."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((config.host.strip("[]"), config.port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        where = f"{config.host} port {config.port}"
        if error.errno == errno.EADDRINUSE:
            raise ServeError(
                f"{where} is already in use", hint="stop what runs there, or choose another: --port N (0: any free one)"
            ) from error
        if error.errno == errno.EACCES:
            raise ServeError(f"{where}: not permitted", hint="ports below 1024 need privileges: --port 8765") from error
        raise ServeError(f"cannot listen on {where}: {error.strerror or error}", hint="check --host") from error
    sock.setblocking(False)
    return sock


def tls_context(config: ServeConfig) -> ssl.SSLContext | None:
    if config.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ServeError(f"cannot use the certificate {config.tls_cert}: {error}") from error
    return context


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One process's server on the shared socket."""

    config: ServeConfig
    sock: socket.socket
    metrics: Metrics
    tls: ssl.SSLContext | None = None
    life: int | None = None  # a pipe that ends with the supervising process

    def run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        if self.life is not None:
            loop.add_reader(self.life, stop.set)
        runner = await self.start()
        await stop.wait()
        if self.life is not None:
            loop.remove_reader(self.life)
        log.info("stopping: downloads get %.0f seconds to finish (again: at once)", _GRACE)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _leave)
        await runner.cleanup()

    async def start(self) -> web.AppRunner:
        """Serving when this returns; `cleanup()` of the result ends it."""
        hub = Hub.open(self.config.root)
        shelf = Shelf(hub=hub)
        shelf.load()
        state = State(config=self.config, shelf=shelf, vault=Vault(layout=hub.layout), metrics=self.metrics)
        runner = web.AppRunner(
            build(state),
            access_log_class=AccessLogger,
            access_log=ACCESS if self.config.access_log else None,
            keepalive_timeout=_KEEPALIVE,
            lingering_time=_LINGER,
            shutdown_timeout=_GRACE,
        )
        await runner.setup()
        _ignore_expect(runner)
        await web.SockSite(runner, self.sock, backlog=_BACKLOG, ssl_context=self.tls).start()
        return runner


def _ignore_expect(runner: web.AppRunner) -> None:
    """No body is ever wanted, so an `Expect` header is met by the answer itself. aiohttp would answer it on its own,
    before our code, quoting the header: one that is no text makes that a 500."""
    server = runner.server
    assert server is not None
    make = server.request_factory

    def without_expect(message: RawRequestMessage, *others: Any) -> web.BaseRequest:
        if "Expect" in message.headers:
            headers = message.headers.copy()
            headers.popall("Expect")
            message = message._replace(headers=CIMultiDictProxy(headers))
        return make(message, *others)

    server.request_factory = without_expect


def _leave() -> None:
    os._exit(130)


def check(config: ServeConfig) -> ssl.SSLContext | None:
    """Find out what would fail before a port is taken or a process made; the TLS context, where there is one."""
    Shelf(hub=Hub.open(config.root)).load()
    return tls_context(config)


def serve(config: ServeConfig, sock: socket.socket, tls: ssl.SSLContext | None) -> int:
    """Serve until a signal says otherwise. The socket is bound already, so that its port is known."""
    metrics = Metrics(config.workers)
    if config.workers == 1:
        Worker(config=config, sock=sock, metrics=metrics, tls=tls).run()
        return 0
    return _supervise(config, sock, metrics, tls)


def _supervise(config: ServeConfig, sock: socket.socket, metrics: Metrics, tls: ssl.SSLContext | None) -> int:
    """Keep the workers running; the first signal ends them in order, the second at once."""
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    life, _held = os.pipe()  # the workers see its end when this process is gone, however it went
    workers: dict[int, int] = {}

    def start(row: int) -> None:
        worker = Worker(config=config, sock=sock, metrics=metrics.for_worker(row), tls=tls, life=life)
        workers[_fork(worker, _held, signals)] = row

    for row in range(config.workers):
        start(row)
    stopping = 0
    while workers:
        number = signal.sigwait(signals)
        if number != signal.SIGCHLD:
            stopping += 1
            sock.close()  # while one process holds it, clients go on queueing
            for pid in workers:
                os.kill(pid, signal.SIGTERM if stopping == 1 else signal.SIGKILL)
            continue
        for pid, status in _reap():
            row = workers.pop(pid, -1)
            if row >= 0 and not stopping:
                log.error("worker %d (process %d) ended with status %d: starting another", row, pid, status)
                time.sleep(_RESTART_PAUSE)  # one that cannot start must not burn a core
                start(row)
    return 0


def _fork(worker: Worker, held: int, blocked: set[signal.Signals]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.close(held)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
        worker.metrics.reset_row()
        worker.run()
        code = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()
        os._exit(code)


def _reap() -> list[tuple[int, int]]:
    """(process, status) of the children that have ended."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append((pid, os.waitstatus_to_exitcode(status)))
