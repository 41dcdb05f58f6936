"""Rooflines on paper against numbers worked by hand."""

from __future__ import annotations

import pytest

from flash_attn3_sm121.arch import CAPABILITIES
from flash_attn3_sm121.bench.devices import SHEETS, sheet
from flash_attn3_sm121.bench.roofline import occupancy, predict, roofline_text
from flash_attn3_sm121.bench.workloads import CUDA
from flash_attn3_sm121.errors import UsageError
from tests.bench.samples import dense

GB10 = SHEETS["gb10"]


def test_decode_is_bound_by_memory_and_prefill_by_compute() -> None:
    lines = {work.name: predict(work, GB10) for work in CUDA}
    decode, prefill = lines["decode-uniform"], lines["prefill"]
    assert decode.bound == "memory" and decode.gbps == pytest.approx(218) and decode.tflops < 1
    assert prefill.bound == "compute" and prefill.tflops == pytest.approx(92.3)
    # 16 rows of 16384 keys, 8 heads of 128, two bytes, keys and values: 1 GiB at 218 GB/s.
    assert decode.ms == pytest.approx((16 * 16384 * 8 * 128 * 2 * 2 + 2 * 16 * 32 * 128 * 2) / 218e9 * 1e3)


def test_tiles_fold_the_group_for_caches() -> None:
    work = dense(kind="cache", q_len=1, k_len=64, lengths=(64, 64), batch=2, heads=8, heads_kv=2)
    assert predict(work, GB10).tiles == 4  # one for each row and kv head
    assert predict(dense(q_len=300, k_len=300, heads=2), GB10).tiles == 6


def test_occupancy_by_hand() -> None:
    # 128 threads of 255 registers: 256 * 32 * 4 = 32768 registers a block, two blocks of 65536.
    assert occupancy(GB10, threads=128, registers=255, smem_kib=16) == (2, "registers")
    assert occupancy(GB10, threads=128, registers=168, smem_kib=48) == (2, "shared memory")
    assert occupancy(GB10, threads=1024, registers=32, smem_kib=1) == (1, "warps")


def test_the_sheets_agree_with_the_arch_table() -> None:
    for device in SHEETS.values():
        row = CAPABILITIES[device.capability]
        assert row.smem_limit <= device.smem_kib * 1024


def test_text_says_that_it_is_a_prediction() -> None:
    text = roofline_text("GB10")
    assert "not a measurement" in " ".join(text.split()) and "decode-ragged" in text and "423 FLOP/byte" in text
    with pytest.raises(UsageError, match="no figures for 'tpu'"):
        sheet("tpu")
