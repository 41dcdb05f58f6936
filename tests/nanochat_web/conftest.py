"""Servers for all tests that leave them as they found them, and one browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser, Page, seen
from tests.nanochat_web.harness import Server, World, running
from tests.nanochat_web.pages import SCREENS, opened_page


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With torch, so that attention is really served."""
    world = World.make(tmp_path_factory.mktemp("web") / "world").usual()
    with running(world) as server:
        yield server


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.make(tmp_path / "world", light=True).usual()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What the pages are opened on; one of its checkpoints is broken."""
    world = World.make(tmp_path_factory.mktemp("page") / "world", light=True).usual()
    world.put("mid_checkpoints", "d12", 400).joinpath("meta_000400.json").write_text('{"step": 4', encoding="utf-8")
    with running(world) as started:
        yield started


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """A page of its own; at the end nothing was red in its console, and nobody else was asked for anything."""
    opened = opened_page(browser, server, **SCREENS["light"])
    yield opened
    for gate in (server.world.root / "gates").iterdir():
        server.world.gate(gate.name, 99)  # one that a failed test left closed would hold the model for the others
    assert seen(opened).problems == []
    assert {url.split("/")[2] for url in seen(opened).requests if url.startswith("http")} == {
        f"127.0.0.1:{server.port}"
    }
    opened.close()
