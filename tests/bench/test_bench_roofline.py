"""Rooflines on paper against numbers worked by hand."""

from __future__ import annotations

import pytest

from flash_attn3_sm121.arch import CAPABILITIES
from flash_attn3_sm121.bench.devices import SHEETS, sheet
from flash_attn3_sm121.bench.roofline import predict, roofline
from flash_attn3_sm121.bench.workloads import CUDA
from flash_attn3_sm121.console import plain
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


def test_the_sheets_name_capabilities_of_the_arch_table() -> None:
    for device in SHEETS.values():
        assert device.capability in CAPABILITIES


def test_text_says_that_it_is_a_prediction() -> None:
    text = plain(roofline("GB10"))
    assert "not a measurement" in " ".join(text.split()) and "decode-ragged" in text and "423 FLOP/byte" in text
    with pytest.raises(UsageError, match="no figures for 'tpu'"):
        sheet("tpu")
