"""One server with the usual models for all tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nanochat_web.harness import Server, World, running


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    world = World.make(tmp_path_factory.mktemp("web") / "world").usual()
    with running(world) as server:
        yield server


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.make(tmp_path / "world", light=True).usual()
