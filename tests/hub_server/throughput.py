"""How fast `hub serve` sends, beside nginx over the same tree on the same machine in the same minute.

    python -m tests.hub_server.throughput [--size MB] [--rounds N] [--workers N] [--write JSON]

`hub serve` is one process; --workers says how many nginx has.

Big files: megabytes a second; the client reads into one buffer and throws away. Small files: requests a second over
16 kept connections, asked by ApacheBench (`ab`), since a client in Python would be slower than either server. Rounds
alternate, so that whatever else the machine does falls on both; the median counts. CPU time is each server's own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from flash_attn3_sm121.hub.store import Hub
from tests.hub_server.harness import NGINX, REPO, ROOT, Server, add_repo, behind_nginx, running

AIM = {"big": 1.0, "small": 0.5}  # of nginx
BIG, SMALL = "build/torch-cuda/big.bin", "build/torch-cuda/small.py"
CLIENTS = (1, 8)
KEPT = 16  # connections
ASKED = 20_000
SMALL_PATHS = {"a file of 3 kB": f"/{REPO}/resolve/main/{SMALL}", "the index": "/simple/", "API": f"/api/models/{REPO}"}


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


def measure(path: str, size: int, clients: int, port: int) -> float:
    """Have so many clients fetch a file at once; megabytes of all of them."""
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(fetch(port, path))) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if results != [size] * clients:
        raise SystemExit(f"expected {clients} times {size} bytes, found {results}")
    return clients * size / 1e6


def requests(path: str, count: int, port: int) -> float:
    """Ask so many times; returns how many."""
    command = ["ab", "-q", "-k", "-c", str(KEPT), "-n", str(count), f"http://127.0.0.1:{port}{path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    if re.search(r"Failed requests: +0\b", done.stdout) is None or "Non-2xx" in done.stdout:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return count


def compare(size: int, rounds: int, *, workers: int = 1, count: int = ASKED) -> list[dict[str, object]]:
    """One row for each number of clients of a big file, and for each small one."""
    if NGINX is None or shutil.which("ab") is None:
        raise SystemExit("the comparison needs nginx and ab: apt-get install nginx-light apache2-utils")
    with tempfile.TemporaryDirectory(prefix="hub-throughput-") as name:
        folder = Path(name)
        hub = Hub.create(folder / "hub", durable=False)
        block = os.urandom(1 << 20)
        add_repo(
            hub, REPO, {BIG: b"".join(bytes([n % 256]) + block[1:] for n in range(size >> 20)), SMALL: block[:3000]}
        )
        with running(hub.layout.root) as ours, behind_nginx(hub.layout.root, folder, workers=workers) as theirs:
            path = f"/{REPO}/resolve/main/{BIG}"
            for server in (ours, theirs):
                fetch(server.port, path)
            both = (ours, theirs)
            bits = [_row({"big": f"{n} clients"}, "mb", both, rounds, partial(measure, path, size, n)) for n in CLIENTS]
            return bits + [
                _row({"small": name}, "requests", both, rounds, partial(requests, small, count))
                for name, small in SMALL_PATHS.items()
            ]


def cpu_seconds(server: Server) -> float:
    """What a server's process and its children have used so far."""
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    files = [file for one in (pid, *children) for file in Path(f"/proc/{one}/task").glob("*/schedstat")]
    return sum(int(file.read_text(encoding="ascii").split()[0]) for file in files) / 1e9


def _row(
    what: dict[str, object], unit: str, both: tuple[Server, Server], rounds: int, work: Callable[[int], float]
) -> dict[str, object]:
    """`work` says how much it did, given a port. Speeds are medians; CPU time is that of all rounds."""
    speeds: dict[Server, list[float]] = {server: [] for server in both}
    done, used = dict.fromkeys(both, 0.0), dict.fromkeys(both, 0.0)
    for server in both * rounds:
        cpu, begin = cpu_seconds(server), time.perf_counter()
        amount = work(server.port)
        speeds[server].append(amount / (time.perf_counter() - begin))
        used[server] += cpu_seconds(server) - cpu
        done[server] += amount
    ours, theirs = both
    ratio = statistics.median(a / b for a, b in zip(speeds[ours], speeds[theirs], strict=True))
    row = {**what, "ratio": round(ratio, 3)}
    for name, server in (("hub", ours), ("nginx", theirs)):
        row[f"{name}_{unit}_per_s"] = round(statistics.median(speeds[server]))
        row[f"{name}_cpu_us_per_{unit.rstrip('s')}"] = round(used[server] / done[server] * 1e6, 1)
    return row


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
    return subprocess.run([str(NGINX), "-v"], capture_output=True, text=True, check=False).stderr.strip()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="the hub's server beside nginx")
    parser.add_argument("--size", type=int, default=100, metavar="MB", help="of the big file (default: 100)")
    parser.add_argument("--rounds", type=int, default=9, help="default: 9, alternating; the median counts")
    parser.add_argument("--workers", type=int, default=1, help="processes of nginx (default: 1)")
    parser.add_argument("--write", type=Path, metavar="JSON", help="keep the result in this file")
    args = parser.parse_args(argv)
    load = os.getloadavg()[0]
    rows = compare(args.size << 20, args.rounds, workers=args.workers)
    for row in rows:
        print(", ".join(f"{key} {value}" for key, value in row.items()))
    lowest = {kind: min(float(str(row["ratio"])) for row in rows if kind in row) for kind in AIM}
    for kind, ratio in lowest.items():
        print(f"{kind}: lowest ratio {ratio} (aim: {AIM[kind]})")
    if args.write:
        value = {
            "what": f"a file of {args.size} MiB, and small ones over {KEPT} kept connections; loopback, "
            f"1 process of the hub, {args.workers} of nginx",
            "rounds": f"{args.rounds}, alternating; the median counts",
            "date": datetime.now(timezone.utc).date().isoformat(),
            "machine": machine(),
            "load": f"{load:.1f} before it began",  # of other work: the servers share it, and the ratio is the noisier
            "commit": commit(),
            "nginx": nginx_version(),
            "aim": AIM,
            "rows": rows,
        }
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
