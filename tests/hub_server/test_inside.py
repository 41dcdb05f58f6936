"""The server in this process, where time and bytes can be interfered with."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from flash_attn3_sm121.errors import IntegrityError
from flash_attn3_sm121.hub.index import FileEntry
from flash_attn3_sm121.hub.server import replies, vault
from flash_attn3_sm121.hub.server.catalog import Catalog, Shelf
from flash_attn3_sm121.hub.server.config import ServeConfig
from flash_attn3_sm121.hub.server.metrics import Gauges, Metrics
from flash_attn3_sm121.hub.server.page import PageFacts, human, render, render_repo, serves
from flash_attn3_sm121.hub.server.serve import Worker, listen
from flash_attn3_sm121.hub.server.vault import Vault
from flash_attn3_sm121.hub.store import Hub
from tests.hub_server.harness import REPO, add_repo

BIG = "build/torch-cuda/big.bin"
FACTS = PageFacts(base="http://127.0.0.1:1", token=False, stale=False, version="1")


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Hub, FileEntry]:
    hub = Hub.create(tmp_path / "hub")
    add_repo(hub, REPO, {BIG: bytes(range(256)) * 65536})
    revision = next(iter(hub.index().repos[REPO].revisions.values()))
    return hub, hub.manifest(revision.manifest).files[BIG]


def test_many_openers_hash_once(stored: tuple[Hub, FileEntry], monkeypatch: pytest.MonkeyPatch) -> None:
    hub, entry = stored
    hashed: list[int] = []
    true = vault._hash_file

    def counting(number: int) -> tuple[str, vault.Identity]:
        hashed.append(number)
        return true(number)

    monkeypatch.setattr(vault, "_hash_file", counting)

    async def main() -> None:
        box = Vault(layout=hub.layout)
        jobs = [asyncio.ensure_future(box.open(entry)) for _ in range(50)]
        await asyncio.sleep(0)
        jobs[0].cancel()  # the one who began it goes away: nobody else notices
        for result in await asyncio.gather(*jobs, return_exceptions=True):
            if not isinstance(result, asyncio.CancelledError):
                assert not isinstance(result, BaseException)
                result.close()
        (await box.open(entry)).close()

    asyncio.run(main())
    assert len(hashed) == 1


def test_a_file_that_changes_while_it_is_hashed(stored: tuple[Hub, FileEntry], monkeypatch: pytest.MonkeyPatch) -> None:
    hub, entry = stored
    path, true = hub.layout.object(entry.sha256), vault._hash_file

    def meddling(number: int) -> tuple[str, vault.Identity]:
        found, _ = true(number)
        path.chmod(0o644)
        with path.open("r+b") as stream:
            stream.write(b"evil")
        monkeypatch.setattr(vault, "_hash_file", true)
        return found, vault._identity(path.stat())

    monkeypatch.setattr(vault, "_hash_file", meddling)
    box = Vault(layout=hub.layout)
    # The hash of the old bytes was right, but it vouches for nothing any more.
    with pytest.raises(IntegrityError, match="not what its name says"):
        asyncio.run(box.open(entry))


@asynccontextmanager
async def inside(hub: Hub) -> AsyncIterator[tuple[int, Metrics]]:
    """A server on this event loop: its port and its counters."""
    config = ServeConfig(root=hub.layout.root, port=0, access_log=False)
    metrics = Metrics()
    with listen(config) as sock:
        port = sock.getsockname()[1]
        runner = await Worker(config=config, sock=sock, metrics=metrics).start()
        try:
            yield port, metrics
        finally:
            await runner.cleanup()


def test_a_client_that_takes_nothing_is_dropped(stored: tuple[Hub, FileEntry], monkeypatch: pytest.MonkeyPatch) -> None:
    hub, entry = stored
    monkeypatch.setattr(replies, "_PIECE_SECONDS", 0.2)

    async def main() -> int:
        async with inside(hub) as (port, metrics):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(f"GET /{REPO}/resolve/main/{BIG} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            while "dropped_total 1" not in metrics.render(GAUGES):
                await asyncio.sleep(0.05)
            return await asyncio.get_running_loop().run_in_executor(None, drained, sock)

    assert asyncio.run(asyncio.wait_for(main(), 60)) < entry.size


GAUGES = Gauges(generation=1, wheels=0, repositories=0, stale=False, version="1")


def drained(sock: socket.socket) -> int:
    """Bytes that still come until the connection ends."""
    received = 0
    with sock:
        try:
            while chunk := sock.recv(1 << 20):
                received += len(chunk)
        except ConnectionResetError:
            pass
    return received


def test_a_damaged_generation_is_tried_again(stored: tuple[Hub, FileEntry], monkeypatch: pytest.MonkeyPatch) -> None:
    hub, _ = stored
    shelf = Shelf(hub=hub)
    shelf.load()
    path = hub.layout.generation(hub.generation() + 1)
    hub.layout.current.write_text(f"{hub.generation() + 1}\n", encoding="ascii")
    assert shelf.stale()
    shelf.load()
    assert "is missing" in shelf.trouble and shelf.catalog.index.generation + 1 == hub.generation()
    assert not shelf.stale()  # not at once
    monkeypatch.setattr(shelf, "_retry_at", 0.0)
    path.write_bytes(replace(shelf.catalog.index, generation=hub.generation()).to_bytes())
    assert shelf.stale()
    shelf.load()
    assert not shelf.trouble and shelf.catalog.index.generation == hub.generation() and not shelf.stale()


def test_counters_of_all_workers_are_added_up() -> None:
    shared = Metrics(3)
    for row in range(3):
        worker = shared.for_worker(row)
        for _ in range(row + 1):
            worker.started()
            worker.finished("wheel", 200, sent=10, seconds=0.5)
        worker.started()
    text = shared.render(GAUGES)
    assert 'requests_total{route="wheel",code="200"} 6\n' in text
    assert 'response_bytes_total{route="wheel"} 60\n' in text
    assert "requests_in_flight 3\n" in text
    shared.for_worker(1).reset_row()
    assert "requests_in_flight 2\n" in shared.render(GAUGES)


def test_what_the_hub_says_is_escaped(hub: Hub) -> None:
    index = hub.index()
    name, wheel = next(iter(index.wheels.items()))
    nasty = replace(wheel, verify="<script>alert(1)</script>", profile='"><img src=x>', key="'onload='x", signature="x")
    repo = replace(index.repos[REPO], flavour="<b>fat</b>")
    manifests = {entry.manifest: hub.manifest(entry.manifest) for _, _, entry in index.revisions()}
    catalog = Catalog(index=index.with_wheel(name, nasty).with_repo(REPO, repo), manifests=manifests)
    facts = replace(FACTS, base='http://"><script>x</script>')
    for page in (render(catalog, facts), render_repo(catalog, REPO, facts, root="../")):
        assert page.count("<script") == 1  # ours
        assert "<img" not in page and "<b>" not in page
        assert "&lt;" in page


@pytest.mark.parametrize("host", ['"><script>', "evil.example/path", "a b", "x" * 400, "evil.example:1:2", "[::1"])
def test_a_strange_host_header_is_not_believed(hub: Hub, host: str) -> None:
    async def main() -> bytes:
        async with inside(hub) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            received = await reader.read()
            writer.close()
            return received

    answer = asyncio.run(main())
    assert host.encode() not in answer
    assert answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 "))


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (99_400, "99.4 kB"), (99_960, "100 kB"), (10**9, "1.0 GB")],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert human(size) == text


def test_which_code_a_device_would_run(hub: Hub) -> None:
    from flash_attn3_sm121.arch import CAPABILITIES

    wheel = next(entry for entry in hub.index().wheels.values() if entry.platform == "linux_aarch64")
    both = replace(wheel, images=("compute_120", "sm_120", "sm_121"))
    assert serves(both, CAPABILITIES["12.1"]) == "sm_121"
    assert serves(both, CAPABILITIES["12.0"]) == "sm_120"
    assert serves(replace(wheel, images=("sm_120",)), CAPABILITIES["12.1"]) == "sm_120"
    assert serves(both, CAPABILITIES["8.9"]) is None
    assert serves(both, CAPABILITIES["9.0"]) is None  # another family
