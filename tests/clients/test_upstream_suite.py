"""FlashAttention-3's own tests of numbers against the fallback: a sample, from the pinned sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from ci.settings import Settings
from ci.sources.fetch import fetch
from ci.sources.lock import read_lock
from tests.clients.envs import run

HERE = Path(__file__).parent


@pytest.mark.network
@pytest.mark.slow
def test_upstreams_tests_pass_on_the_fallback(tmp_path: Path) -> None:
    tree = fetch(read_lock(), Settings())
    for name in ("test_flash_attn.py", "test_util.py", "padding.py"):
        text = (tree.hopper / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace('device = "cuda"', 'device = "cpu"'), encoding="utf-8")
    seed, factor = "3", "1"
    report = run("upstream", HERE / "probe_upstream.py", str(tmp_path), seed, factor, home=tmp_path)
    assert report == {"passed": 34, "failed": []}
