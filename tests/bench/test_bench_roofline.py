"""Rooflines on paper against numbers worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flash_attn3_sm121.arch import CAPABILITIES
from flash_attn3_sm121.bench import splits
from flash_attn3_sm121.bench.bounds import PEAK_TFLOPS, Bounds
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


def test_half_the_bytes_are_half_the_time_of_decoding() -> None:
    for work in CUDA:
        if work.dtype_kv == "e4m3":
            assert predict(work.in_bf16, GB10).ms / predict(work, GB10).ms == pytest.approx(2, rel=0.01)
    assert "decode-fp8-cache 2.00" in plain(roofline("gb10"))


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


# A warp's share of a tile of 128 x 64 at head dim 64, four warps.
LOOP = {"instructions": 700, "tensor": 128, "mufu": 68, "fp": 308, "integer": 80, "shared": 216, "warps": 4}


def kernel(label: str, **more: Any) -> dict[str, Any]:
    return {"label": label, "kind": label.split()[0], "image": "sm_121", "registers": 255, "loop": LOOP, **more}


def test_the_slowest_unit_sets_the_pace() -> None:
    found = Bounds.of(LOOP, 255)
    assert (found.tensor, found.issue, found.mufu, found.shared) == (2048, 700, 544, 864)
    assert found.warps == 8, "two blocks of four warps at 255 registers a thread"
    assert found.most == 1 and found.least == pytest.approx(2048 / (2048 + 700 + 544 + 864))
    assert Bounds.of(LOOP | {"mufu": 512}, 255).most == 0.5
    assert Bounds.of(LOOP, 128).warps == 16 and Bounds.of(LOOP | {"warps": 8}, 255).warps == 8
    assert pytest.approx(118.85, abs=0.01) == PEAK_TFLOPS


def test_an_installed_wheels_kernels_are_in_the_table_of_a_gb10(tmp_path: Path) -> None:
    kernels = [
        kernel("forward hd64 bf16 [sm_121]"),
        kernel("forward hd64 fp16 causal [sm_121]", loop=LOOP | {"instructions": 800}),
        kernel("forward hd64/128 bf16 paged [sm_121]", loop=LOOP | {"tensor": 192}),
        kernel("forward hd64 bf16 causal kv8 paged [sm_121]", loop=LOOP | {"instructions": 900}),
        kernel("forward hd64 bf16 fp8 [sm_121]", loop=LOOP | {"tensor": 64}),
        kernel("forward hd64 bf16 [sm_120]", image="sm_120", loop=LOOP | {"instructions": 9999}),
        kernel("prepare _Zwhat [sm_121]", loop={}),
    ]
    (tmp_path / "verify.json").write_text(json.dumps({"libraries": {"x.so": {"kernels": kernels}}}), encoding="utf-8")
    lines = [line for line in plain(roofline("gb10", tmp_path)).splitlines() if line.startswith("forward")]
    assert [" ".join(line.split()) for line in lines] == [
        "forward hd64 2 2048 700 to 800 544 864 8 48 to 100 %",
        "forward hd64 fp8 1 1024 700 544 864 8 33 to 100 %",
        "forward hd64 kv8 1 2048 900 544 864 8 47 to 100 %",
        "forward hd64/128 1 3072 700 544 864 8 59 to 100 %",
    ]
    said = " ".join(plain(roofline("gb10", tmp_path)).split())
    assert "prediction on paper, never measured" in said and "(`fp8`) it is a share of 238 TFLOP/s" in said
    assert "forward" not in plain(roofline("h100", tmp_path))
    every = [*roofline("gb10", tmp_path), *splits.table("gb10"), *(bare := roofline("gb10", tmp_path / "none"))]
    assert "no wheel with counted kernels" in plain(bare)
    assert all(len(block) <= 80 for block in every if isinstance(block, str)), "a terminal would wrap them once more"
