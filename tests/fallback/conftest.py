"""Small cuts: the same engine with tiny blocks, so that small shapes take the paths of large ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from flash_attn3_sm121.fallback import blocked, decode, geometry, kernels


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors here are tiny: a second thread only waits, badly so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cuts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Parametrise indirectly with "usual", "tiny" (small blocks) or "plain" (small blocks, no fused kernel)."""
    if request.param == "plain":
        monkeypatch.setattr(kernels, "pick", lambda *_, **more: None)
    if request.param != "usual":
        monkeypatch.setattr(geometry, "BLOCK_ROWS", 4)
        monkeypatch.setattr(geometry, "SMALL_MASK", 0)
        monkeypatch.setattr(geometry, "SQUARE_WINDOW", 1)
        monkeypatch.setattr(geometry, "REPEAT_ROWS", 12)
        monkeypatch.setattr(decode, "PART_KEYS", 4)
        monkeypatch.setattr(decode, "LEAST_KEYS", 2)
        monkeypatch.setattr(decode, "SHORT_KEYS", 2)
        monkeypatch.setattr(geometry, "SPLIT_ROWS", 1)
        monkeypatch.setattr(blocked, "SCORES", 1 << 9)
        monkeypatch.setattr(blocked, "MIN_KEYS", 5)
    return str(request.param)
