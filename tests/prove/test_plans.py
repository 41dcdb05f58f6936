"""How many splits the library's own plans have, executed: what `bench --splits` predicts from."""

from __future__ import annotations

from pathlib import Path

import pytest

from ci.commands import common, options
from ci.prove.gb10 import executable
from flash_attn3_sm121.bench.splits import BATCHES, GROUPS, HEADS, Decode

pytestmark = [pytest.mark.nvcc, pytest.mark.slow]


def test_the_library_plans_the_splits_that_bench_predicts(tmp_path: Path) -> None:
    session = common.begin(options.Request(profile="nanochat", archs="12.1"))
    (family,) = session.plan.families
    builder = common.builder(session, common.gather_inputs(session))
    if not all(builder.store.object(key.key).exists() for key in builder.keys(family.units)):
        pytest.skip("needs kernels that split keys, which take long to compile: make wheel puts them into the cache")
    made = executable.make(builder, family, output=tmp_path)
    wanted = [Decode(batch=b, tokens=t, group=g) for b in BATCHES for t in (2048, 8192, 30000, 131072) for g in GROUPS]
    calls = [[call.batch, HEADS, HEADS // call.group, call.tokens] for call in wanted]
    plans = made.run("tests.fakes.tile_calls:splits", {"dim": 128, "calls": calls}).result
    for call, plan in zip(wanted, plans, strict=True):
        assert plan == [call.splits_of_library(48)] * call.batch, call
