"""Attention sinks and the gradient of the LSE in the kernels, executed on the CPU, against the formula in fp64."""

from __future__ import annotations

from typing import Any

import pytest

from ci.prove.tiles import Forward
from flash_attn3_sm121.bench.bounds import ISSUED, MUFU_LANES
from tests.fakes.fault_calls import NEAR
from tests.fakes.fault_kernels import make

pytestmark = [pytest.mark.nvcc, pytest.mark.slow]
CASES = ("window", "gpt_oss", "split_pages", "gradients")
Told = dict[int, dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Number of SMs -> what `tests.fakes.sink_calls` says of each case: a process for each number."""
    library = make(tmp_path_factory.mktemp("sinks"), mended=True)
    settings: dict[int, dict[str, Any]] = {48: {}, 1: {"seed": 1, "lazy": True}}
    return {
        sms: library.run("tests.fakes.sink_calls:show", {"ways": [way]}, sms=sms).result
        for sms, way in settings.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_kernels_give_what_the_formula_gives(told: Told, case: str) -> None:
    for found in (told[48][case], told[1][case]):
        assert {name: value for name, value in found["figures"].items() if not value <= NEAR[name]} == {}
        assert found["errors"] == []


@pytest.mark.parametrize("case", ["window", "split_pages", "gradients"])
def test_without_them_the_figures_are_far(told: Told, case: str) -> None:
    """What the comparison would say, had the kernels not looked at the argument."""
    assert max(value / NEAR[name] for name, value in told[48][case]["ignored"].items()) > 10


def test_sinks_cost_less_than_two_percent_of_the_predicted_time(told: Told) -> None:
    """Where they weigh most, under a narrow window at head dim 64, and even if no unit of an SM overlapped another.

    None of their instructions is on the tensor cores, which bound the kernel: where all overlap, they cost nothing.
    """
    found = told[48]["gpt_oss"]
    without, more = found["instructions ignored"], found["instructions"] - found["instructions ignored"]
    assert 0 < more < 0.035 * without
    rows, heads, window, tile = 384, 8, 128, Forward(head_dim=64, block_m=128, block_n=64, warps=4, q_in_regs=False)
    queries = tile.block_m // heads  # of a tile, whose rows are those of all heads
    tiles = sum(
        -(-(first + queries) // tile.block_n) - max(0, first - window + 1) // tile.block_n
        for first in range(0, rows, queries)
    )
    sinks = more / ISSUED + rows * heads * 4 * 4 / MUFU_LANES  # four MUFU operations in each of a row's four threads
    assert sinks < 0.02 * (tiles * sum(tile.clocks) + without / ISSUED)
