"""A verified copy: what a hub serves is taken whole, and a hostile one is refused before anything shows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flash_attn3_sm121.errors import HubError, IntegrityError, UsageError
from flash_attn3_sm121.hub.index import FileEntry
from flash_attn3_sm121.hub.maintain import check, sign
from flash_attn3_sm121.hub.pull import Remote, _all, pull
from flash_attn3_sm121.hub.sign import SigningKey, TrustedKeys
from flash_attn3_sm121.hub.store import Hub
from tests.hub_server.harness import INIT, REPO, add_repo, behind_nginx, needs_nginx, running

pytest.importorskip("cryptography")


@pytest.fixture(autouse=True)
def _private_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FA3_CACHE", str(tmp_path / "fa3"))


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.generate(tmp_path / "key")


@pytest.fixture
def origin(tmp_path: Path, key: SigningKey) -> Hub:
    hub = Hub.create(tmp_path / "origin", durable=False)
    add_repo(hub, REPO, {INIT: b"print('good')\n"})
    sign(hub, key)
    return hub


def test_a_copy_is_the_same_to_the_byte(origin: Hub, key: SigningKey, tmp_path: Path) -> None:
    keys, root = TrustedKeys.parse(key.public), tmp_path / "copy"
    with running(origin.layout.root, env={"FLASH_ATTN3_HUB_TOKEN": "correct-horse"}) as server:
        with pytest.raises(HubError, match="401"):
            pull(root, Remote(url=server.url), keys)
        assert not root.exists(), "nothing was pulled, so nothing was made"
        remote = Remote(url=server.url, token="correct-horse")
        done = pull(root, remote, keys, durable=False)
        assert done.changed and done.generation == origin.generation() and done.files > 5
        assert pull(root, remote, keys, durable=False).changed is False
        add_repo(origin, REPO, {INIT: b"print('newer')\n"}, key=key)
        assert pull(root, remote, keys, durable=False).files < done.files
    copy = Hub.open(root)
    assert copy.index() == origin.index() and check(copy, keys).ok
    assert (copy.layout.root / "www" / REPO / "resolve/main" / INIT).read_bytes() == b"print('newer')\n"


class Endless:
    """A file without an end."""

    begun = threading.Event()

    def read(self, size: int) -> bytes:
        self.begun.set()
        return b"x"


class Interrupted(Remote):
    """Ctrl-C comes while another file is on its way."""

    @contextmanager
    def open(self, path: str) -> Iterator[Any]:
        if path == "first":
            assert Endless.begun.wait(60)
            raise KeyboardInterrupt
        yield Endless()


def test_a_pull_that_is_interrupted_does_not_wait_for_files(tmp_path: Path) -> None:
    hub = Hub.create(tmp_path / "hub", durable=False)
    wanted = {FileEntry(sha256=digit * 64, size=1): name for digit, name in (("0", "first"), ("1", "second"))}
    with hub.transaction() as txn, pytest.raises(KeyboardInterrupt):
        _all(txn, Interrupted(url="http://h"), wanted)
    assert not list(hub.layout.tmp.iterdir())


@needs_nginx
def test_nginx_is_as_good_a_source(origin: Hub, key: SigningKey, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    with behind_nginx(origin.layout.root, tmp_path) as server:
        assert pull(root, Remote(url=server.url), TrustedKeys.parse(key.public), durable=False).changed
    assert Hub.open(root).index() == origin.index()


def evil_file(hub: Hub) -> None:
    path = hub.layout.root / "www" / REPO / "resolve/main" / INIT
    path.chmod(0o644)
    path.write_bytes(b"print('evil')\n")


def evil_index(hub: Hub) -> None:
    path = hub.layout.root / "www/hub/generation.json"
    path.write_bytes(path.read_bytes().replace(b'"fa3"', b'"vllm"'))


def unsigned(hub: Hub) -> None:
    (hub.layout.root / "www/hub/generation.sig").unlink()


@needs_nginx
@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (evil_file, "expected sha256"),
        (evil_index, "does not match the content"),
        (unsigned, "is not signed"),
    ],
)
def test_a_hostile_hub_is_refused(
    origin: Hub, key: SigningKey, tmp_path: Path, attack: Callable[[Hub], None], message: str
) -> None:
    """nginx sends whatever lies there; what a plain client would run is found out before it shows here."""
    attack(origin)
    root = tmp_path / "copy"
    with behind_nginx(origin.layout.root, tmp_path) as server, pytest.raises(IntegrityError, match=message):
        pull(root, Remote(url=server.url), TrustedKeys.parse(key.public), durable=False)
    assert not (root / "www").exists()
    assert root.exists() == (attack is evil_file), "a folder is made for files, once the signature was right"


def test_an_older_generation_is_refused(origin: Hub, key: SigningKey, tmp_path: Path) -> None:
    keys, root = TrustedKeys.parse(key.public), tmp_path / "copy"
    with running(origin.layout.root) as server:
        add_repo(origin, REPO, {INIT: b"print('fixed')\n"}, key=key)
        pull(root, Remote(url=server.url), keys, durable=False)
        origin.layout.current.write_text("2\n")
        with pytest.raises(IntegrityError, match="is older than 3"):
            pull(root, Remote(url=server.url), keys, durable=False)
    assert Hub.open(root).generation() == 3


def test_what_was_published_into_a_copy_is_not_hidden(origin: Hub, key: SigningKey, tmp_path: Path) -> None:
    keys, root = TrustedKeys.parse(key.public), tmp_path / "copy"
    with running(origin.layout.root) as server:
        for text in (b"1", b"2"):
            add_repo(origin, REPO, {INIT: text}, key=key)
            pull(root, Remote(url=server.url), keys, durable=False)
        copy = Hub.open(root, durable=False)
        add_repo(copy, "lab/own", {INIT: b"mine"}, key=key)
        add_repo(origin, REPO, {INIT: b"3"}, key=key)
        add_repo(origin, REPO, {INIT: b"4"}, key=key)
        mine = copy.index()
        with pytest.raises(HubError, match=f"generation {mine.generation} of .* was made here since the last pull"):
            pull(root, Remote(url=server.url), keys, durable=False)
        assert copy.index() == mine
        copy.layout.current.write_text(f"{mine.generation - 1}\n")  # as after a pull that was killed before its end
        assert pull(root, Remote(url=server.url), keys, durable=False).changed
    assert copy.index() == origin.index()


def test_without_a_key_nothing_is_pulled(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a key to trust"):
        pull(tmp_path / "copy", Remote(url="http://127.0.0.1:9"), None)
    assert not (tmp_path / "copy").exists()
