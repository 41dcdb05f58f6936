"""FlashAttention 2 and 4 as contenders: stand-ins with their signatures show that each is asked rightly."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import flash_attn3_sm121 as fa3
from flash_attn3_sm121.bench.case import build
from flash_attn3_sm121.bench.check import check_results, reference
from flash_attn3_sm121.bench.contenders import Refused
from flash_attn3_sm121.bench.contenders.external import FlashAttention2, FlashAttention4
from flash_attn3_sm121.fa2 import interface
from tests.bench.samples import TINY, dense

CPU = torch.device("cpu")


def _module(name: str, **functions: Any) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__path__ = []
    vars(module).update(functions)
    return module


def _dense2(q: Tensor, k: Tensor, v: Tensor, causal: bool, window_size: tuple[int, int]) -> Tensor:
    out: Tensor = fa3.flash_attn_func(q, k, v, causal=causal, window_size=window_size)
    return out


def _varlen2(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, longest_q: int, longest_k: int, causal: bool,
    window_size: tuple[int, int],
) -> Tensor:  # fmt: skip
    out: Tensor = fa3.flash_attn_varlen_func(
        q, k, v, cu_q, cu_k, longest_q, longest_k, causal=causal, window_size=window_size
    )
    return out


def _cache2(
    q: Tensor, k: Tensor, v: Tensor, cache_seqlens: Tensor, block_table: Tensor | None, causal: bool,
    window_size: tuple[int, int],
) -> Tensor:  # fmt: skip
    out: Tensor = fa3.flash_attn_with_kvcache(
        q, k, v, cache_seqlens=cache_seqlens, page_table=block_table, causal=causal, window_size=window_size
    )
    return out


def _dense4(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window_size: tuple[int | None, int | None]
) -> tuple[Tensor, None]:
    """FlashAttention 4 says "unlimited" with None, and returns a pair."""
    assert all(side is None or side >= 0 for side in window_size)
    left, right = (-1 if side is None else side for side in window_size)
    return _dense2(q, k, v, causal, (left, right)), None


def _varlen4(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, causal: bool,
    window_size: tuple[int | None, int | None],
) -> tuple[Tensor, None]:  # fmt: skip
    assert all(side is None or side >= 0 for side in window_size)
    left, right = (-1 if side is None else side for side in window_size)
    longest = int(cu_seqlens_q.diff().max())
    return _varlen2(q, k, v, cu_seqlens_q, cu_seqlens_k, longest, longest, causal, (left, right)), None


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    functions2 = {
        "flash_attn_func": _dense2,
        "flash_attn_varlen_func": _varlen2,
        "flash_attn_with_kvcache": _cache2,
    }
    functions4 = {"flash_attn_func": _dense4, "flash_attn_varlen_func": _varlen4}
    monkeypatch.setitem(sys.modules, "flash_attn", _module("flash_attn", **functions2))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", _module("flash_attn.cute", **functions4))


@pytest.mark.parametrize("name", TINY)
def test_flash_attention_2_is_asked_rightly(name: str) -> None:
    work = TINY[name]
    if work.kind == "paged":
        with pytest.raises(Refused, match="multiples of 256"):
            FlashAttention2().prepare(build(work, CPU))
        work = dense(kind="paged", batch=2, q_len=1, k_len=512, page_size=256, lengths=(300, 18), heads=4)
    case = build(work, CPU)
    assert check_results(FlashAttention2().prepare(case)(), reference(case), "fp32").why is None


@pytest.mark.parametrize("name", TINY)
def test_flash_attention_4_is_asked_rightly(name: str) -> None:
    case = build(TINY[name], CPU)
    if case.workload.kind in ("cache", "paged"):
        with pytest.raises(Refused, match="no KV cache"):
            FlashAttention4().prepare(case)
        return
    assert check_results(FlashAttention4().prepare(case)(), reference(case), "fp32").why is None


def test_our_own_functions_under_that_name_are_no_contender(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = _module("flash_attn", flash_attn_func=interface.flash_attn_func)
    monkeypatch.setitem(sys.modules, "flash_attn", ours)
    with pytest.raises(Refused, match="is flash_attn3_sm121 under that name"):
        FlashAttention2().prepare(build(TINY["causal"], CPU))


def test_a_package_that_is_there_but_broken_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise ImportError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr("flash_attn3_sm121.bench.contenders.base.importlib.import_module", broken)
    with pytest.raises(Refused, match=r"cannot be imported: libcudart\.so\.12"):
        FlashAttention2().prepare(build(TINY["causal"], CPU))
