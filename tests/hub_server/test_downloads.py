"""Many clients at once: every hash right, and a server that stays small."""

from __future__ import annotations

import array
import fcntl
import hashlib
import http.client
import re
import shutil
import socket
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flash_attn3_sm121.hub.store import Hub
from tests.hub_server.harness import REPO, add_repo, running, until

CLIENTS = 64
BIG = "build/torch-cuda/big.bin"
SIZE = 24 << 20


def resident(pid: int) -> int:
    """Kilobytes of a process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> tuple[Hub, dict[str, str]]:
    """A hub with one big file and some small ones, and their hashes."""
    hub = Hub.create(tmp_path_factory.mktemp("big") / "hub")
    block = hashlib.sha256(b"seed").digest() * 32768
    files = {BIG: b"".join(bytes([n]) + block[1:] for n in range(SIZE // len(block)))}
    files |= {f"build/torch-cuda/small{n}.py": b"%d\n" % n * n for n in range(20)}
    add_repo(hub, REPO, files)
    return hub, {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}


def download(port: int, path: str, *, pause: float = 0.0) -> str:
    """The sha256 of what came; slowly, with a pause after each piece."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("GET", f"/{REPO}/resolve/main/{path}")
    answer, digest = connection.getresponse(), hashlib.sha256()
    assert answer.status == 200
    while chunk := answer.read(1 << 20):
        digest.update(chunk)
        time.sleep(pause)
    connection.close()
    return digest.hexdigest()


def waiting(sock: socket.socket) -> int:
    """Bytes that have come and were not read."""
    count = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return count[0]


def test_many_clients_at_once(big: tuple[Hub, dict[str, str]]) -> None:
    hub, hashes = big
    small = [path for path in hashes if path != BIG]
    with running(hub.layout.root) as server:
        download(server.port, small[0])
        start, peak = resident(server.process.pid), Peak(server.process.pid)
        with ThreadPoolExecutor(CLIENTS) as pool, peak:
            # The first use of a file is when it is hashed: all of them ask for it at that moment.
            jobs = [pool.submit(download, server.port, BIG, pause=0.01 * (n % 2)) for n in range(CLIENTS)]
            found = [job.result() for job in jobs]
            for path in small:
                assert download(server.port, path) == hashes[path]
        assert found == [hashes[BIG]] * CLIENTS
        assert peak.highest - start < 48 * 1024, f"{start} kB at first, {peak.highest} kB at the most"


def test_answers_come_in_the_order_they_were_asked_for(big: tuple[Hub, dict[str, str]]) -> None:
    """Small files from memory, big ones from the disk, all asked for at once over one connection by a slow reader."""
    hub, hashes = big
    paths = [*[path for path in hashes if path != BIG], BIG] * 3
    with running(hub.layout.root) as server, socket.create_connection(("127.0.0.1", server.port), timeout=60) as sock:
        lines = "".join(f"GET /{REPO}/resolve/main/{path} HTTP/1.1\r\nHost: h\r\n\r\n" for path in paths)
        sock.sendall(lines.encode())
        # More than all the small ones: the first big one is on its way, and nobody has read a byte.
        until(lambda: waiting(sock) > 64 << 10, "answers that nobody reads")
        with sock.makefile("rb") as stream:
            for path in paths:
                assert stream.readline().startswith(b"HTTP/1.1 200 ")
                headers = http.client.parse_headers(stream)
                assert hashlib.sha256(stream.read(int(headers["Content-Length"]))).hexdigest() == hashes[path]


class Peak:
    """The highest resident size of a process while a block runs."""

    def __init__(self, pid: int) -> None:
        self.pid, self.highest = pid, resident(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.highest = max(self.highest, resident(self.pid))

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_clients_that_go_away_cost_nothing(big: tuple[Hub, dict[str, str]]) -> None:
    hub, hashes = big
    with running(hub.layout.root) as server:
        for _ in range(200):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            connection.request("GET", f"/{REPO}/resolve/main/{BIG}")
            assert connection.getresponse().read(1000)
            connection.close()
        assert download(server.port, BIG) == hashes[BIG]
        descriptors = Path(f"/proc/{server.process.pid}/fd")
        until(lambda: len(list(descriptors.iterdir())) < 60, "the server to close what belonged to those who left")
    assert "Traceback" not in server.log


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit is not installed: apt-get install util-linux")
def test_a_thousand_idle_clients_beside_a_healthy_server(big: tuple[Hub, dict[str, str]]) -> None:
    """With 1,024 descriptors, 1,100 connections that say nothing: they are hung up on, and the others served."""
    hub, hashes = big
    limit = ("prlimit", "--nofile=128:1024")
    with running(hub.layout.root, through=limit) as server:
        limits = Path(f"/proc/{server.process.pid}/limits").read_text(encoding="ascii")
        assert re.search(r"^Max open files +1024 +1024 ", limits, re.MULTILINE), "raised to the hard limit"
        idle = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(1100)]
        lines = server.log.count("\n")
        assert server.ask("/healthz").status == 200
        assert all(sock.recv(1) == b"" for sock in idle), "nobody may hold a connection for ever"
        assert download(server.port, BIG) == hashes[BIG]
        assert server.log.count("\n") == lines, "the log grew by what clients did"
        for sock in idle:
            sock.close()
