"""How fast the hub's server hands out a big file, beside nginx with sendfile on the same machine in the same minute.

    python -m tests.hub_server.throughput [--size MB] [--rounds N] [--write docs/results/hub-throughput.json]

Both serve the very same file (an object of a hub folder) over loopback. Rounds alternate, so that whatever else the
machine does falls on both; the median counts. The client reads into one buffer and throws away.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from flash_attn3_sm121.hub.layout import HubLayout
from flash_attn3_sm121.hub.store import Hub
from tests.hub_server.harness import REPO, ROOT, add_repo, running

AIM = 0.8
BIG = "build/torch-cuda/big.bin"
CONCURRENCY = (1, 8)
NGINX = """\
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
worker_processes 1;
events {{ worker_connections 512; }}
http {{
  access_log off; sendfile on; tcp_nopush on; types {{}}
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; location / {{ root {root}; }} }}
}}
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def nginx_program() -> str:
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise SystemExit("nginx is not installed: apt-get install nginx-light")
    return program


@contextmanager
def nginx(root: Path, folder: Path) -> Iterator[int]:
    """One worker that serves `root`; its port."""
    program, port, config = nginx_program(), free_port(), folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, root=root), encoding="ascii")
    process = subprocess.Popen([program, "-c", str(config), "-p", str(folder)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"nginx did not start:\n{(folder / 'error.log').read_text()}") from None
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def fetch(port: int, path: str) -> int:
    """Bytes of body received."""
    with socket.create_connection(("127.0.0.1", port), timeout=120) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        buffer = bytearray(1 << 20)
        first = sock.recv(4096, 0)
        while b"\r\n\r\n" not in first:
            first += sock.recv(4096)
        head, _, rest = first.partition(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise SystemExit(f"expected 200, found {head[:80]!r}")
        received = len(rest)
        while count := sock.recv_into(buffer):
            received += count
        return received


def measure(port: int, path: str, size: int, clients: int) -> float:
    """Megabytes a second over all clients."""
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(fetch(port, path))) for _ in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    if results != [size] * clients:
        raise SystemExit(f"expected {clients} times {size} bytes, found {results}")
    return clients * size / seconds / 1e6


def compare(size: int, rounds: int) -> list[dict[str, object]]:
    """One row for each number of clients."""
    with tempfile.TemporaryDirectory(prefix="hub-throughput-") as name:
        folder = Path(name)
        os.chmod(folder, 0o755)  # noqa: PTH101 (nginx's worker runs as another user)
        hub = Hub.create(folder / "hub")
        add_repo(hub, REPO, {BIG: os.urandom(1 << 20) * (size >> 20)})
        layout = HubLayout(root=hub.layout.root)
        stored = max(layout.objects.glob("*/*"), key=lambda path: path.stat().st_size)
        size, theirs = stored.stat().st_size, f"/{stored.parent.name}/{stored.name}"
        ours = f"/{REPO}/resolve/main/{BIG}"
        with running(hub.layout.root, "--quiet") as server, nginx(layout.objects, folder) as port:
            for warm, path in ((server.port, ours), (port, theirs)):
                fetch(warm, path)
            rows: list[dict[str, object]] = []
            for clients in CONCURRENCY:
                pairs = [
                    (measure(server.port, ours, size, clients), measure(port, theirs, size, clients))
                    for _ in range(rounds)
                ]
                hub_speed, nginx_speed = (statistics.median(column) for column in zip(*pairs, strict=True))
                rows.append(
                    {
                        "clients": clients,
                        "hub_mb_per_s": round(hub_speed),
                        "nginx_mb_per_s": round(nginx_speed),
                        "ratio": round(statistics.median(a / b for a, b in pairs), 3),
                    }
                )
    return rows


def machine() -> str:
    """What it was measured on, without its name."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "?")
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def nginx_version() -> str:
    """As nginx prints it, on stderr."""
    return subprocess.run([nginx_program(), "-v"], capture_output=True, text=True, check=False).stderr.strip()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="the hub's server beside nginx, for one big file")
    parser.add_argument("--size", type=int, default=100, metavar="MB", help="default: 100")
    parser.add_argument("--rounds", type=int, default=9, help="default: 9, alternating; the median counts")
    parser.add_argument("--write", type=Path, metavar="JSON", help="keep the result in this file")
    args = parser.parse_args(argv)
    rows = compare(args.size << 20, args.rounds)
    for row in rows:
        speeds = f"hub {row['hub_mb_per_s']} MB/s, nginx {row['nginx_mb_per_s']} MB/s"
        print(f"clients: {row['clients']}, {speeds}, ratio {row['ratio']}")
    ratio = min(float(str(row["ratio"])) for row in rows)
    print(f"lowest ratio {ratio} (aim: {AIM} or better)")
    if args.write:
        value = {
            "what": f"a file of {args.size} MiB over loopback, one process each",
            "rounds": f"{args.rounds}, alternating; the median counts",
            "date": datetime.now(timezone.utc).date().isoformat(),
            "machine": machine(),
            "commit": commit(),
            "nginx": nginx_version(),
            "aim": AIM,
            "rows": rows,
        }
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    return 0 if ratio >= AIM else 1


if __name__ == "__main__":
    sys.exit(main())
