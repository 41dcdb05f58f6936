"""Starting, stopping, and the token over the wire."""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from flash_attn3_sm121.errors import ServeError, UsageError
from flash_attn3_sm121.hub.index import FileEntry
from flash_attn3_sm121.hub.store import Hub
from tests.hub_server.harness import COMMAND, INIT, REPO, Server, add_repo, environ, running, until

TOKEN = "correct-horse-battery"
SIZE = 50_000_000


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hub = Hub.create(tmp_path_factory.mktemp("small") / "hub")
    add_repo(hub, REPO, {INIT: b"x" * SIZE})
    return hub.layout.root


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environ(),
        check=False,
    )


def test_a_port_in_use_is_said(small: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = call("--hub", str(small), "--port", str(port))
    assert done.returncode == ServeError.exit_code
    assert f"127.0.0.1 port {port}: " in done.stderr and "in use" in done.stderr and "--port" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--host", "0.0.0.0", "--port", "0"], UsageError.exit_code, "no token is set"),
        (["--host", "203.0.113.7", "--insecure", "--port", "0"], ServeError.exit_code, "cannot listen"),
        (["--host", "no such host", "--insecure", "--port", "0"], ServeError.exit_code, "cannot listen"),
        (["--tls-cert", "nothing.pem", "--port", "0"], ServeError.exit_code, "--tls-cert nothing.pem"),
        (["--token-file", "nothing"], UsageError.exit_code, "--token-file"),
        (["--workers", "2"], UsageError.exit_code, "this option is gone: one process serves all clients now"),
    ],
)
def test_what_cannot_be_served_is_said(small: Path, arguments: list[str], code: int, text: str) -> None:
    done = call("--hub", str(small), *arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert text in done.stderr


def test_a_folder_that_is_no_hub(tmp_path: Path) -> None:
    done = call("--hub", str(tmp_path), "--port", "0")
    assert done.returncode == 30 and "no hub at" in done.stderr and done.stdout == ""


def start_download(server: Server) -> socket.socket:
    """A download that is stuck in the middle because nobody reads it."""
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    sock.sendall(f"GET /{REPO}/resolve/main/{INIT} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
    assert sock.recv(1)
    return sock


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_downloads_finish(small: Path, number: signal.Signals) -> None:
    hang_up = signal.signal(signal.SIGHUP, lambda *_: None)  # tests under nohup would have the server ignore it
    with running(small) as server, start_download(server) as sock:
        signal.signal(signal.SIGHUP, hang_up)
        server.process.send_signal(number)
        until(lambda: "Shutting down" in server.log, "the server's word that it stops")
        assert 1 + sum(map(len, iter(lambda: sock.recv(1 << 20), b""))) > SIZE
        assert server.process.wait(30) == 0
    assert "Traceback" not in server.log


def test_a_stalled_download_does_not_hold_the_server(small: Path) -> None:
    with running(small) as server, start_download(server) as sock:
        assert server.stop() == 0
        with contextlib.suppress(ConnectionResetError):
            assert 1 + sum(map(len, iter(lambda: sock.recv(1 << 20), b""))) < SIZE, "it was cut off, not waited for"


def test_a_file_that_is_being_hashed_does_not_hold_the_server(tmp_path: Path) -> None:
    """A terabyte, all of it a hole: to hash it takes longer than any test may."""
    hub, entry = Hub.create(tmp_path / "hub"), FileEntry(sha256="0" * 64, size=1 << 40)
    path = hub.layout.object(entry.sha256)
    path.parent.mkdir()
    with path.open("wb") as stream:
        stream.truncate(entry.size)
    add_repo(hub, REPO, {INIT: entry})
    with running(hub.layout.root) as server, socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(f"GET /{REPO}/resolve/main/{INIT} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        until(lambda: str(path) in opened(server), "the server to hash it")
        assert server.stop() == 0
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    assert "Traceback" not in server.log


def opened(server: Server) -> set[str]:
    """The files that the server has open."""
    found = set()
    for link in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed just now
            found.add(str(link.readlink()))
    return found


def test_the_token_over_the_wire(small: Path, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n", encoding="utf-8")
    basic = base64.b64encode(f"anybody:{TOKEN}".encode()).decode()
    with running(small, "--host", "0.0.0.0", "--token-file", str(file)) as server:
        for path in ("/", "/simple/", f"/{REPO}/resolve/main/{INIT}", "/no/such/thing", "/-/hub.css"):
            refused = server.ask(path)
            assert (refused.status, b"x" * 20 in refused.body) == (401, False)
            assert refused.headers["www-authenticate"].startswith("Basic ")
            assert server.ask(path, headers={"Authorization": "Bearer wrong-horse-battery"}).status == 401
        assert server.ask("/healthz").status == 200
        for header in (f"Bearer {TOKEN}", f"Basic {basic}"):
            assert server.ask("/simple/", headers={"Authorization": header}).status == 200
        page = server.ask("/", headers={"Authorization": f"Basic {basic}"}).text
        assert "HF_TOKEN" in page and TOKEN not in page
        sha = json.loads(server.ask(f"/api/models/{REPO}", headers={"Authorization": f"Bearer {TOKEN}"}).body)["sha"]
        kept = server.ask(f"/{REPO}/resolve/{sha}/{INIT}", headers={"Authorization": f"Bearer {TOKEN}"})
        assert kept.headers["cache-control"].startswith("private")
        server.ask(f"/?token={TOKEN}")
        server.stop()
    assert TOKEN not in server.log


def test_the_access_log_is_asked_for_and_holds_no_token(small: Path) -> None:
    with running(small) as quiet, running(small, "--access-log") as talking:
        for server in (quiet, talking):
            assert server.ask("/healthz?token=secret-thing").status == 200
    assert '"GET /healthz' not in quiet.log and '"GET /healthz" 200' in talking.log
    assert "secret-thing" not in talking.log


def test_the_token_from_the_environment(small: Path) -> None:
    with running(small, env={"FLASH_ATTN3_HUB_TOKEN": TOKEN}) as server:
        assert server.ask("/").status == 401
        assert server.ask("/", headers={"Authorization": f"Bearer {TOKEN}"}).status == 200


def test_https(small: Path, tmp_path: Path) -> None:
    pem = tmp_path / "both.pem"
    recipe = "req -x509 -newkey ed25519 -nodes -subj /CN=hub -days 2 -addext subjectAltName=IP:127.0.0.1"
    made = subprocess.run(
        ["openssl", *recipe.split(), "-keyout", str(tmp_path / "key.pem"), "-out", str(pem)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    with running(small, "--connections", "2", "--tls-cert", str(pem), "--tls-key", str(tmp_path / "key.pem")) as server:
        assert server.url.startswith("https://")
        for _ in range(8):  # who does not speak TLS holds no place
            assert b"HTTP/" not in server.raw(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        context = ssl.create_default_context(cafile=pem)
        bare = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        with context.wrap_socket(bare, server_hostname="127.0.0.1") as sock:
            sock.sendall(f"GET /{REPO}/resolve/main/{INIT} HTTP/1.0\r\n\r\n".encode())
            received = b"".join(iter(lambda: sock.recv(1 << 20), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ") and body == b"x" * SIZE
