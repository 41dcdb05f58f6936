"""Wheels of the true package, made once, and hubs that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from flash_attn3_sm121.hub.publish import judge, publish
from flash_attn3_sm121.hub.store import Hub
from tests.hub.wheelmaker import copy_hub, write_wheel

PLATFORMS = {"x86_64": "linux_x86_64", "aarch64": "linux_aarch64", "pure": None}


@pytest.fixture(autouse=True)
def _private_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own hub, caches or keys."""
    for name in ("FLASH_ATTN3_HUB", "FLASH_ATTN3_TRUSTED_KEYS", "FLASH_ATTN3_SIGNING_KEY", "LOCAL_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    for name, folder in (("XDG_DATA_HOME", "data"), ("FA3_CACHE", "fa3"), ("HF_HOME", "hf")):
        monkeypatch.setenv(name, str(tmp_path / folder))


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """One release: both platforms and the pure wheel."""
    folder = tmp_path_factory.mktemp("wheels")
    return {name: write_wheel(folder, platform=platform) for name, platform in PLATFORMS.items()}


@pytest.fixture(scope="session")
def newer_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The next release, for one platform."""
    return write_wheel(tmp_path_factory.mktemp("newer"), version="3.0.1", library=b"newer")


@pytest.fixture(scope="session")
def _published(tmp_path_factory: pytest.TempPathFactory, wheels: Mapping[str, Path]) -> Path:
    root = tmp_path_factory.mktemp("hub") / "hub"
    publish(Hub.create(root, durable=False), judge(wheels.values()))
    return root


@pytest.fixture
def hub(tmp_path: Path, _published: Path) -> Hub:
    """A hub of one's own with the one release in it."""
    copy_hub(_published, tmp_path / "hub")
    return Hub.open(tmp_path / "hub", durable=False)
