"""What was changed behind the hub's back is never served, however it was done.

A small file that was asked for before is still sent as it was published: its bytes are kept in memory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flash_attn3_sm121.hub.server.app import SMALL
from flash_attn3_sm121.hub.store import Hub
from tests.hub_server.harness import INIT, REPO, add_repo, running

SECRET = b"the-canary-outside-of-the-hub"


def object_of(hub: Hub, path: str = INIT) -> Path:
    repo = hub.index().repos[REPO]
    manifest = hub.manifest(repo.revisions[repo.refs["main"]].manifest)
    return hub.layout.object(manifest.files[path].sha256)


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(change(data))


def same_size_and_time(path: Path) -> None:
    before = path.stat()
    rewrite(path, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(b"#" + data[1:])


def linked_outside(path: Path) -> None:
    secret = path.parents[3] / "secret.txt"
    secret.write_bytes(SECRET)
    path.unlink()
    path.symlink_to(secret)


def linked_to_the_right_bytes(path: Path) -> None:
    elsewhere = path.parents[3] / "copy"
    shutil.copy(path, elsewhere)
    path.unlink()
    path.symlink_to(elsewhere)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


CHANGES: dict[str, tuple[Callable[[Path], None], int]] = {
    "longer": (lambda path: rewrite(path, lambda data: data + b"x"), 409),
    "shorter": (lambda path: rewrite(path, lambda data: data[:-1]), 409),
    "empty": (lambda path: rewrite(path, lambda _: b""), 409),
    "same size and time": (same_size_and_time, 409),
    "replaced": (replaced, 409),
    "linked outside": (linked_outside, 410),
    "linked to the right bytes": (linked_to_the_right_bytes, 410),
    "a pipe": (a_pipe, 410),
    "a folder": (a_folder, 410),
    "gone": (Path.unlink, 410),
}


@pytest.mark.parametrize("served_before", [False, True], ids=["unseen", "seen"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_tampered_object_is_refused(tmp_path: Path, name: str, served_before: bool) -> None:
    hub, good = Hub.create(tmp_path / "hub"), b"print('good')\n" * 100
    add_repo(hub, REPO, {INIT: good})
    change, status = CHANGES[name]
    with running(hub.layout.root) as server:
        address = f"/{REPO}/resolve/main/{INIT}"
        for _ in range(2 * served_before):  # the first request of all reads the index, and its answer is not kept
            assert server.ask(address).status == 200
        change(object_of(hub))
        for method in ("GET", "HEAD"):
            for headers in ({}, {"Range": "bytes=0-3"}, {"If-None-Match": "*"}):
                answer = server.ask(address, method=method, headers=headers)
                if served_before and method == "GET" and not headers:
                    assert (answer.status, answer.body) == (200, good)
                    continue
                assert answer.status == status
                assert SECRET not in answer.body and b"good" not in answer.body
    assert server.log.count("refused: object") == 1, "a log must not grow by asking"


def test_a_large_file_is_looked_at_whenever_it_is_asked_for(tmp_path: Path) -> None:
    """It is sent from the disk: an answer that was given before does not help a file that has changed."""
    hub = Hub.create(tmp_path / "hub", durable=False)
    paths = {name: f"build/torch-cuda/{number}.bin" for number, name in enumerate(CHANGES)}
    add_repo(hub, REPO, {path: path.encode() + bytes(SMALL) for path in paths.values()})
    with running(hub.layout.root) as server:
        for name, (change, status) in CHANGES.items():
            address = f"/{REPO}/resolve/main/{paths[name]}"
            for _ in range(3):
                assert server.ask(address).body == paths[name].encode() + bytes(SMALL)
            change(object_of(hub, paths[name]))
            assert server.ask(address).status == status, name


def test_a_mended_object_is_served_again(tmp_path: Path) -> None:
    hub = Hub.create(tmp_path / "hub")
    add_repo(hub, REPO, {INIT: b"good\n"})
    with running(hub.layout.root) as server:
        address = f"/{REPO}/resolve/main/{INIT}"
        same_size_and_time(object_of(hub))
        assert server.ask(address).status == 409
        add_repo(hub, REPO, {INIT: b"good\n"})  # publishing the same content again puts it right
        assert server.ask(address).body == b"good\n"


def test_a_damaged_manifest_takes_only_its_revision_away(tmp_path: Path) -> None:
    hub = Hub.create(tmp_path / "hub")
    add_repo(hub, REPO, {INIT: b"good\n"})
    add_repo(hub, "other/repo", {INIT: b"fine\n", "README.md": b"more\n"})
    manifest = next(iter(hub.index().repos[REPO].revisions.values())).manifest
    rewrite(hub.layout.object(manifest), lambda data: data.replace(b"good", b"evil") + b" ")
    with running(hub.layout.root) as server:
        assert server.ask(f"/{REPO}/resolve/main/{INIT}").status == 409
        assert server.ask(f"/other/repo/resolve/main/{INIT}").body == b"fine\n"
    assert "Traceback" not in server.log
