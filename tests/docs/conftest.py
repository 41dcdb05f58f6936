from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.place import Place
from tests.fakes.torch_hook import native as native


@pytest.fixture(scope="module")
def build_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("build") / "venv"


@pytest.fixture
def place(tmp_path: Path, build_venv: Path) -> Place:
    return Place(tmp_path, build_venv=build_venv)
