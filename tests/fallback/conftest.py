"""Small cuts: the same engine with tiny blocks, so that small shapes take the paths of large ones."""

from __future__ import annotations

import pytest

from flash_attn3_sm121.fallback import blocked, cpu_kernel, geometry


@pytest.fixture
def cuts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Parametrise indirectly with "usual", "tiny" (small blocks) or "plain" (small blocks, no fused kernel)."""
    if request.param == "plain":
        monkeypatch.setattr(cpu_kernel, "refusal", lambda: "switched off by a test")
    if request.param != "usual":
        monkeypatch.setattr(geometry, "BLOCK_ROWS", 4)
        monkeypatch.setattr(geometry, "SMALL_MASK", 0)
        monkeypatch.setattr(geometry, "MAX_REPEAT", 3)
        monkeypatch.setattr(geometry, "SPLIT_ROWS", 1)
        monkeypatch.setattr(blocked, "SCORES", 1 << 7)
        monkeypatch.setattr(blocked, "MIN_KEYS", 4)
    return str(request.param)
