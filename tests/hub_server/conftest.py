"""One hub and one server for all tests that change neither."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flash_attn3_sm121.hub.store import Hub
from tests.hub_server.harness import Server, make_hub, running


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    return make_hub(tmp_path_factory.mktemp("served"), payload=bytes(range(256)) * 4096)


@pytest.fixture(scope="session")
def server(hub: Hub) -> Iterator[Server]:
    with running(hub.layout.root) as started:
        yield started


@pytest.fixture
def own_hub(tmp_path: Path) -> Hub:
    """A hub to do things to."""
    return make_hub(tmp_path)
