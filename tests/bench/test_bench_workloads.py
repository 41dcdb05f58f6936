"""The workloads' arithmetic against counting, and their names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flash_attn3_sm121.bench.case import POISON, build
from flash_attn3_sm121.bench.workloads import CPU, CUDA, QUICK, Workload, kept_pairs, suite
from tests.bench.samples import TINY, dense
from tests.flex.reference import Rule, keep


@pytest.mark.parametrize("rows,keys", [(1, 1), (5, 5), (3, 9), (9, 3), (40, 64)])
@pytest.mark.parametrize("causal,window", [(True, -1), (True, 0), (True, 4), (False, -1), (False, 6)])
def test_kept_pairs_are_counted_right(rows: int, keys: int, causal: bool, window: int) -> None:
    mask = keep(rows, keys, Rule(left=window, right=0 if causal else -1))
    assert kept_pairs(rows, keys, causal=causal, window=window) == int(mask.sum())


@pytest.mark.parametrize("works", [QUICK, CPU, CUDA], ids=["quick", "cpu", "cuda"])
def test_suites_name_every_kind_and_no_name_twice(works: tuple[Workload, ...]) -> None:
    names = [work.name for work in works]
    assert len(names) == len(set(names))
    kinds = ("train-causal-d64", "train-causal-d128", "train-causal-d256", "prefill", "chunked-prefill",
             "decode-uniform", "decode-ragged", "varlen-packing", "paged-decode")  # fmt: skip
    assert set(kinds) <= set(names)
    assert any(work.window > 0 and not work.backward for work in works)
    assert any(work.window > 0 and work.backward for work in works)
    for work in works:
        assert work.flops > 0 and work.bytes > 0 and work.heads % work.heads_kv == 0
        if work.kind in ("cache", "paged"):
            assert len(work.lengths) == work.batch and max(work.lengths) <= work.k_len
        if work.kind == "paged":
            assert work.k_len % work.page_size == 0


def test_the_suite_fits_the_device() -> None:
    assert suite("cuda", quick=True) is CUDA
    assert suite("cpu", quick=True) is QUICK
    assert suite("cpu", quick=False) is CPU


def test_flops_and_bytes_of_a_case_worked_by_hand() -> None:
    work = dense(q_len=4, k_len=4, heads=2, heads_kv=1, head_dim=8, dtype="bf16")
    assert work.pairs == 10
    assert work.flops == 4 * 10 * 2 * 8
    assert work.bytes == 2 * (4 * 2 * 8 * 2) + 2 * 4 * 1 * 8 * 2
    decode = dense(kind="cache", q_len=1, k_len=100, lengths=(60, 100), batch=2, window=10, dtype="bf16")
    assert decode.bytes == 2 * (2 * 2 * 16 * 2) + 2 * (11 + 11) * 2 * 16 * 2  # only what the window sees
    fp8 = replace(decode, dtype_kv="e4m3")
    assert fp8.bytes == 2 * (2 * 2 * 16 * 2) + 2 * (11 + 11) * 2 * 16 and fp8.in_bf16 == decode
    assert replace(work, dtype="e4m3").bytes == 4 * 2 * 8 * (1 + 2) + 2 * 4 * 8  # the result is bf16


def test_a_cache_is_poisoned_beyond_its_used_length() -> None:
    case = build(TINY["ragged"], torch.device("cpu"))
    assert bool((case.k[1, 9:] == POISON).all()) and float(case.k[1, :9].abs().max()) < POISON
    for i, (rows, keys) in enumerate(case.workload.sequences):
        q, k, v, _ = case.sequence(i)
        assert q.shape[0] == rows and k.shape[0] == v.shape[0] == keys


def test_pages_hold_what_the_dense_cache_holds() -> None:
    paged = build(TINY["paged"], torch.device("cpu"), seed=3)
    flat = build(
        dense(kind="cache", batch=2, q_len=1, k_len=64, lengths=(61, 18), heads=4), torch.device("cpu"), seed=3
    )
    for i in range(2):
        for a, b in zip(paged.sequence(i)[:3], flat.sequence(i)[:3], strict=True):
            assert torch.equal(a, b)
    assert paged.page_table is not None and paged.page_table.flatten().tolist() != list(range(8))
