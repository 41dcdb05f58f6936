"""A hub folder with something in it, a server on it, and requests that say exactly what goes over the wire."""

from __future__ import annotations

import getpass
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from flash_attn3_sm121.hub.generation import commit
from flash_attn3_sm121.hub.index import FileEntry, Manifest, Repo, Revision
from flash_attn3_sm121.hub.publish import judge, publish
from flash_attn3_sm121.hub.sign import SigningKey
from flash_attn3_sm121.hub.site.nginx import nginx_conf
from flash_attn3_sm121.hub.store import Hub
from tests.hub.wheelmaker import write_wheel

ROOT = Path(__file__).parents[2]
PROJECT = "flash-attn3-sm121"
REPO = "varunneal/flash-attention-3"
INIT = "build/torch-cuda/__init__.py"
# Runs the command itself, so that these tests need no other subcommand.
COMMAND = (
    "import argparse, sys\n"
    "from flash_attn3_sm121.errors import FlashAttn3Error\n"
    "from flash_attn3_sm121.hub.server import cli\n"
    "parser = argparse.ArgumentParser()\n"
    "cli.configure_serve(parser)\n"
    "try:\n"
    "    sys.exit(cli.serve(parser.parse_args()))\n"
    "except FlashAttn3Error as error:\n"
    "    print(f'error: {error}', file=sys.stderr)\n"
    "    sys.exit(error.exit_code)\n"
)


def make_hub(folder: Path, *, payload: bytes = b"") -> Hub:
    """A hub with a wheel for each platform and a pure one; `payload` makes the libraries as big as wanted."""
    wheels = [
        write_wheel(folder / "wheels", platform=name, library=payload) for name in ("linux_x86_64", "linux_aarch64")
    ]
    wheels.append(write_wheel(folder / "wheels", platform=None))
    hub = Hub.create(folder / "hub")
    publish(hub, judge(wheels))
    return hub


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(eq=False)
class Server:
    """A running `hub serve`. `log` is its stderr so far."""

    process: subprocess.Popen[str]
    url: str
    _log: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port

    @property
    def log(self) -> str:
        return "".join(self._log)

    def drain(self) -> threading.Thread:
        def read() -> None:
            assert self.process.stderr is not None
            for line in self.process.stderr:
                self._log.append(line)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        return thread

    def ask(self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
        """One request; the path goes out as it is. No header but Host is added."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            connection.endheaders()
            got = connection.getresponse()
            pairs: dict[str, str] = {}
            for name, value in got.getheaders():
                pairs[name.lower()] = f"{pairs[name.lower()]}, {value}" if name.lower() in pairs else value
            return Answer(status=got.status, headers=pairs, body=got.read())
        finally:
            connection.close()

    def raw(self, data: bytes, *, patience: float = 20.0) -> bytes:
        """Bytes in, bytes out, until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=patience) as sock:
            sock.sendall(data)
            return b"".join(_chunks(sock))

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)


def _chunks(sock: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            chunk = sock.recv(1 << 16)
        except (ConnectionError, TimeoutError):
            return
        if not chunk:
            return
        yield chunk


def environ(more: Mapping[str, str] | None = None) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("FLASH_ATTN3_", "HF_"))}
    return {**clean, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **(more or {})}


@contextmanager
def running(
    hub: Path, *arguments: str, env: Mapping[str, str] | None = None, through: Iterable[str] = ()
) -> Iterator[Server]:
    """`hub serve` on a free port; stopped, and its log complete, at the end."""
    process = subprocess.Popen(
        [*through, sys.executable, "-c", COMMAND, "--hub", str(hub), "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ(env),
    )
    assert process.stdout is not None and process.stderr is not None
    server = Server(process=process, url="")
    thread = server.drain()
    try:
        server.url = process.stdout.readline().strip()
        if not server.url:
            process.wait(30)
            thread.join(10)
            raise AssertionError(f"no server: exit code {process.returncode}\n{server.log}")
        yield server
    finally:
        server.stop()
        thread.join(10)
        process.stdout.close()
        assert not thread.is_alive(), "somebody has outlived the server"
        process.stderr.close()


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition. Only a test that hangs is ended by the clock."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.02)


NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def behind_nginx(root: Path, folder: Path, *, workers: int = 1) -> Iterator[Server]:
    """nginx in front of the trees of a hub or an export, with the very configuration that we write."""
    assert NGINX is not None
    port, config = free_port(), folder / "nginx.main"
    temporary = "".join(
        f"{kind}_temp_path {folder}/t-{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi")
    )
    config.write_text(
        # pytest's folders are the user's alone, so the workers have to be that user.
        f"user {getpass.getuser()}; daemon off; pid {folder}/nginx.pid; worker_processes {workers};\n"
        f"error_log {folder}/error.log;\nevents {{ worker_connections 4096; }}\n"
        f"http {{ access_log off; {temporary} scgi_temp_path {folder}/t-scgi;\n"
        f"{nginx_conf(root.absolute(), f'127.0.0.1:{port}')}\n}}\n"
    )
    process = subprocess.Popen([NGINX, "-c", str(config), "-p", str(folder)], stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.05)
        yield Server(process=process, url=f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.communicate(timeout=30)


def add_repo(
    hub: Hub,
    name: str,
    files: Mapping[str, bytes | FileEntry],
    *,
    refs: Iterable[str] = ("main", "v1"),
    key: SigningKey | None = None,
) -> str:
    """A kernel repository of any content, or of objects that are there; its revision."""
    with hub.transaction(key) as txn:
        contents = {"README.md": b"# Test\n", **files}
        entries = {path: txn.add_bytes(data) if isinstance(data, bytes) else data for path, data in contents.items()}
        manifest = Manifest(flavour="fa3", version="1.0", files=entries)
        stored = txn.add_bytes(manifest.to_bytes())
        revision = Revision(manifest=stored.sha256, version="1.0", created="2026-01-01T00:00:00Z", added=1, wheels=())
        old = txn.base.repos.get(name)
        repo = Repo(
            flavour="fa3",
            refs={**(old.refs if old else {}), **{ref: manifest.revision for ref in refs}},
            revisions={**(old.revisions if old else {}), manifest.revision: revision},
        )
        commit(txn, txn.base.with_repo(name, repo))
    return manifest.revision
