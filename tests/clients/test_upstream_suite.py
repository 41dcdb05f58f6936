"""FlashAttention-3's own tests of numbers against the fallback: a sample, from the pinned sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.envs import run
from tests.clients.upstream_kernels import lay

HERE = Path(__file__).parent


@pytest.mark.network
@pytest.mark.slow
def test_upstreams_tests_pass_on_the_fallback(tmp_path: Path) -> None:
    lay(tmp_path)
    seed, factor = "3", "1"
    report = run("upstream", HERE / "probe_upstream.py", str(tmp_path), seed, factor, home=tmp_path)
    assert report == {"passed": 34, "failed": []}
