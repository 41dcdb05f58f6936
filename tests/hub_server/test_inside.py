"""The server's parts in this process, where time and bytes can be interfered with."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from flash_attn3_sm121.arch import CAPABILITIES
from flash_attn3_sm121.errors import IntegrityError
from flash_attn3_sm121.hub.index import FileEntry
from flash_attn3_sm121.hub.server import files, http
from flash_attn3_sm121.hub.server.app import App
from flash_attn3_sm121.hub.server.config import ServeConfig
from flash_attn3_sm121.hub.server.files import Files
from flash_attn3_sm121.hub.server.http import Front, Ready
from flash_attn3_sm121.hub.site import pages
from flash_attn3_sm121.hub.store import Hub
from tests.hub_server.harness import REPO, add_repo

BIG = "build/torch-cuda/big.bin"


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Hub, FileEntry]:
    hub = Hub.create(tmp_path / "hub")
    add_repo(hub, REPO, {BIG: bytes(range(256)) * 65536})
    revision = next(iter(hub.index().repos[REPO].revisions.values()))
    return hub, hub.manifest(revision.manifest).files[BIG]


def test_many_clients_hash_once(stored: tuple[Hub, FileEntry], monkeypatch: pytest.MonkeyPatch) -> None:
    hub, entry = stored
    hashed: list[Path] = []
    true = files.hash_file

    async def counting(path: Path) -> tuple[str, int]:
        hashed.append(path)
        return await true(path)

    monkeypatch.setattr(files, "hash_file", counting)

    async def main() -> None:
        box = Files(layout=hub.layout)
        jobs = [asyncio.ensure_future(box.path(entry)) for _ in range(50)]
        await asyncio.sleep(0)
        assert set(await asyncio.gather(*jobs)) == {hub.layout.object(entry.sha256)}
        await box.path(entry)

    asyncio.run(main())
    assert len(hashed) == 1


def test_a_file_that_changes_while_it_is_hashed(stored: tuple[Hub, FileEntry], monkeypatch: pytest.MonkeyPatch) -> None:
    hub, entry = stored
    true = files.hash_file

    async def meddling(path: Path) -> tuple[str, int]:
        found = await true(path)
        path.chmod(0o644)
        with path.open("r+b") as stream:
            stream.write(b"evil")
        return found

    monkeypatch.setattr(files, "hash_file", meddling)
    # The hash of the old bytes was right, but it vouches for nothing any more.
    with pytest.raises(IntegrityError, match="was tampered with"):
        asyncio.run(Files(layout=hub.layout).path(entry))


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MOST_KEPT", 60_000)
    monkeypatch.setattr(files, "MOST_REMEMBERED", 5)
    hub = Hub.create(tmp_path / "hub", durable=False)
    bodies = {f"build/torch-cuda/{n}.py": b"%d" % n * 1000 for n in range(40)}
    add_repo(hub, REPO, bodies)
    front = Front(app=App.of(ServeConfig(root=str(hub.layout.root))))

    async def main() -> None:
        await front.app.directory()
        for path, body in list(bodies.items()) * 3:
            assert await ask(front, f"/{REPO}/resolve/main/{path}", Accept="x" * 5000) == (200, body)
            held = sum(len(ready.data) + 5000 for ready in front.ready.values() if isinstance(ready, Ready))
            assert 0 < held <= front.kept <= 60_000 + 15_000 and len(front.app.files._good) <= 5

    asyncio.run(main())


def test_a_damaged_generation_is_tried_again(stored: tuple[Hub, FileEntry], monkeypatch: pytest.MonkeyPatch) -> None:
    hub, _ = stored
    app = App.of(ServeConfig(root=str(hub.layout.root)))

    async def main() -> None:
        first = (await app.directory()).index
        hub.layout.current.write_text(f"{first.generation + 1}\n", encoding="ascii")
        assert (await app.directory()).index == first and "is missing" in app.trouble
        mended = replace(first, generation=first.generation + 1)
        hub.layout.generation(mended.generation).write_bytes(mended.to_bytes())
        assert (await app.directory()).index == first, "not at once"
        monkeypatch.setattr(app, "_retry_at", 0.0)
        assert (await app.directory()).index == mended and not app.trouble

    asyncio.run(main())


def test_what_the_hub_says_is_escaped(hub: Hub) -> None:
    index = hub.index()
    name, wheel = next(iter(index.wheels.items()))
    nasty = replace(wheel, verify="<script>alert(1)</script>", profile='"><img src=x>', cuda="'onload='x")
    repo = replace(index.repos[REPO], flavour="<b>fat</b>")
    forged = index.with_wheel(name, nasty).with_repo(REPO, repo)
    manifest = hub.manifest(repo.revisions[repo.refs["main"]].manifest)
    card = "# Title\n\n<script>x</script><img src=x> <b>bold</b>\n\n[link](javascript:alert(1))\n"
    shown = dict(pages.of_the_hub(forged))
    for page in (shown["index.html"], shown["history.html"], pages.repository(forged, REPO, manifest, card)):
        assert page.count("<script") == 1  # ours
        assert "<img" not in page and "<b>" not in page and 'href="javascript' not in page
        assert "&lt;" in page


def test_the_card_is_rendered(hub: Hub) -> None:
    text = pages.card_html("---\ntags:\n- x\n---\n# One\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
    assert text.startswith("<h1>One</h1>") and "<td>2</td>" in text and "tags" not in text


def test_the_first_page_does_not_grow_with_history(hub: Hub) -> None:
    index = hub.index()
    name, wheel = next((n, w) for n, w in index.wheels.items() if w.platform == "linux_x86_64")
    many = index
    for number in range(300):
        many = many.with_wheel(f"flash_attn3_sm121-3.0.{number}-py3-none-any.whl", replace(wheel, added=number + 2))
    first, history = dict(pages.of_the_hub(many)), dict(pages.of_the_hub(index))
    assert len(first["index.html"]) < 1.2 * len(history["index.html"])
    assert first["history.html"].count("data-search") == 303 and name in first["history.html"]


def test_an_index_barely_grows_with_history(tmp_path: Path) -> None:
    """What a server holds in memory of a revision is its name and a few hashes, not the list of its files."""
    hub = Hub.create(tmp_path / "hub", durable=False)
    sizes = []
    for number in range(3):
        add_repo(hub, REPO, {f"build/torch-cuda/folder{n}/{number}.py": b"%d" % n for n in range(200)})
        sizes.append(len(hub.current().data))
    assert sizes[2] - sizes[1] < 1500 and len(hub.generated(hub.index().repos[REPO].history[0][1])) > 200


def test_which_code_a_device_would_run(hub: Hub) -> None:
    wheel = next(entry for entry in hub.index().wheels.values() if entry.platform == "linux_aarch64")
    both = replace(wheel, images=("compute_120", "sm_120", "sm_121"))
    assert both.code_for(CAPABILITIES["12.1"]) == "sm_121"
    assert both.code_for(CAPABILITIES["12.0"]) == "sm_120"
    assert replace(wheel, images=("sm_120",)).code_for(CAPABILITIES["12.1"]) == "sm_120"
    assert both.code_for(CAPABILITIES["8.9"]) is None
    assert both.code_for(CAPABILITIES["9.0"]) is None  # another family


def test_a_gb10_is_not_served_by_a_wheel_for_another_cpu(hub: Hub) -> None:
    index = hub.index()
    for name, wheel in hub.index().wheels.items():
        if wheel.platform == "linux_aarch64":
            index = index.with_wheel(name, None)
    assert {platforms for _, _, platforms in pages.repo_groups(index)} == {"Linux x86-64"}
    assert "kernels for Linux aarch64, Linux x86-64" in dict(pages.of_the_hub(hub.index()))["index.html"]
    row = next(row for row in pages.machine_rows(index) if row.capability == "12.1")
    assert row.native == () and row.other_host == ("Linux x86-64, sm_121",)
    row = next(row for row in pages.machine_rows(hub.index()) if row.capability == "12.1")
    assert row.native == ("Linux aarch64, sm_121",) and row.other_host == ()


async def ask(front: Front, path: str, **headers: str) -> tuple[int, bytes]:
    """Status and body of the answer to a GET."""
    answer = await front(make_mocked_request("GET", path, headers=headers))
    if isinstance(answer, Ready):
        return answer.status, answer.data
    assert isinstance(answer, web.Response) and isinstance(answer.body, bytes)
    return answer.status, answer.body


def test_an_answer_that_is_kept_never_outlives_its_generation(tmp_path: Path) -> None:
    hub = Hub.create(tmp_path / "hub", durable=False)
    add_repo(hub, REPO, {"README.md": b"one\n"})
    front = Front(app=App.of(ServeConfig(root=str(hub.layout.root))))
    app = front.app
    path = f"/{REPO}/resolve/main/README.md"

    async def main() -> None:
        for _ in range(3):
            assert await ask(front, path) == (200, b"one\n")
        assert len(front.ready) == 1
        front.ready.clear()
        slow = app.files.path

        async def publishing_meanwhile(entry: FileEntry) -> Path:
            app.files.path = slow  # type: ignore[method-assign]
            add_repo(hub, REPO, {"README.md": b"two\n"})
            assert await ask(front, path) == (200, b"two\n")
            front.ready.clear()
            return await slow(entry)

        app.files.path = publishing_meanwhile  # type: ignore[method-assign]
        assert await ask(front, path) == (200, b"one\n"), "asked before it was published"
        assert front.ready == {} and await ask(front, path) == (200, b"two\n")
        held = hub.layout.object(hashlib.sha256(b"two\n").hexdigest())
        held.chmod(0o644)
        held.write_bytes(b"evl\n")
        assert await ask(front, path) == (200, b"two\n"), "the bytes that were hashed are still at hand"
        front.ready.clear()
        assert (await ask(front, path))[0] == 409

    asyncio.run(main())
