"""Ten thousand hostile requests: no 5xx, nothing from outside of the folder, and a server that is well afterwards."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from flash_attn3_sm121.hub.store import Hub
from tests.hub_server.harness import INIT, REPO, make_hub, running
from tests.hub_server.hostile import Names, requests

CANARY = b"canary-5b1f-that-nobody-may-read"
COUNT = 10_000
AT_ONCE = 32
PATIENCE = 1.0  # for the rest of an answer, once it has begun or will never begin
LAST = b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


@pytest.fixture
def trapped_hub(tmp_path: Path) -> Hub:
    """A hub with a secret beside it, and links to the secret inside of it, where a careless server would find them."""
    (tmp_path / "canary.txt").write_bytes(CANARY)
    hub = make_hub(tmp_path)
    root = hub.layout.root
    for folder in (root, root / "objects", root / "tmp", root / "generations"):
        (folder / "inside-link").symlink_to(tmp_path / "canary.txt")
        (folder / "inside-folder").symlink_to(tmp_path, target_is_directory=True)
        (folder / "canary.txt").write_bytes(CANARY)
    zeros = root / "objects" / "00"
    zeros.mkdir(exist_ok=True)
    (zeros / ("0" * 64)).symlink_to(tmp_path / "canary.txt")
    return hub


async def exchange(port: int, data: bytes) -> bytes:
    """Send, followed by an honest last request where the first may be whole, and take what is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        writer.write(data + LAST if data.endswith(b"\r\n\r\n") else data)
        await writer.drain()
        while chunk := await asyncio.wait_for(reader.read(1 << 16), PATIENCE):
            received += chunk
    except (ConnectionError, asyncio.TimeoutError):
        pass  # a server may hang up on nonsense, or wait for the rest of it
    finally:
        writer.transport.abort()
    return received


async def bombard(port: int, shots: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
    queue, results = iter(list(shots)), []

    async def one() -> None:
        for shot in queue:
            results.append((shot, await exchange(port, shot)))

    await asyncio.gather(*(one() for _ in range(AT_ONCE)))
    return results


def memory(pid: int) -> int:
    """Resident kilobytes."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def test_hostile_requests(trapped_hub: Hub) -> None:
    index = trapped_hub.index()
    names = Names(
        repo=REPO,
        file=INIT,
        wheel=next(iter(index.wheels)).replace("+", "%2B"),
        sha=index.repos[REPO].refs["main"],
    )
    with running(trapped_hub.layout.root) as server:
        assert server.ask("/").status == 200
        before = memory(server.process.pid)
        results = asyncio.run(bombard(server.port, requests(20260101, COUNT, names)))
        after = memory(server.process.pid)
        assert server.process.poll() is None
        assert server.ask(f"/{REPO}/resolve/main/{INIT}").status == 200
    assert len(results) == COUNT
    seen: Counter[int] = Counter()
    for shot, answer in results:
        assert CANARY not in answer, shot
        assert b"root:x:0:" not in answer, shot
        assert b"\r\nX-Injected" not in answer, shot
        for status in map(int, STATUS.findall(answer)):
            assert status < 500, (status, shot)
            seen[status] += 1
    assert seen[404] > COUNT / 3 and seen[405] > 100 and seen[400] > 100 and seen[200] > 100
    assert "Traceback" not in server.log
    assert after - before < 64 * 1024, f"grew from {before} to {after} kB"
    assert all(line.isprintable() for line in server.log.splitlines())
