"""Decoding on paper: bytes and waves."""

from __future__ import annotations

import dataclasses

import pytest

from flash_attn3_sm121.bench.devices import sheet
from flash_attn3_sm121.bench.splits import ENOUGH, Decode, calls

GB10 = sheet("gb10")


def test_the_choice_of_the_library_uses_enough_of_the_bandwidth_everywhere() -> None:
    every = calls()
    assert len(every) > 100 and max(call.batch for call in every) == 128
    assert min(call.share(call.splits_of_library(48), GB10) for call in every) >= ENOUGH


@pytest.mark.parametrize(("splits", "least", "most"), [(1, 0.13, 0.15), (4, 0.5, 0.6), (8, 0.85, 1.0)])
def test_one_sequence_on_one_sm_reads_a_tile_for_each_latency(splits: int, least: float, most: float) -> None:
    one = Decode(batch=1, tokens=112 * 480, group=32)  # 28 KiB a microsecond, of 218
    assert one.sequences == 1 and least < one.share(splits, GB10) < most


def test_a_wave_that_is_not_full_costs_where_an_sm_cannot_read_more_than_its_share() -> None:
    slow = dataclasses.replace(GB10, gbps=48 * 28.672)
    call = Decode(batch=2, tokens=112 * 100, group=1)  # 64 sequences for 48 SMs: two waves
    assert call.share(1, slow) == pytest.approx(64 / 96, rel=0.01)
    assert call.share(3, slow) == pytest.approx(1, rel=0.05)
