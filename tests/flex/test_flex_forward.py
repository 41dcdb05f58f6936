"""FlexAttention's forward against fp64 mathematics, for every kind of mask it serves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from flash_attn3_sm121.flex.backend import forward
from flash_attn3_sm121.flex.ranges import MaskRule, blockwise_lse, dense_ranges
from tests.flex.reference import RULES, Rule, args_of, attend_batch, attend_packed

SHAPES = {  # rows, keys, heads, kv heads, dv
    "square": (200, 200, 2, 2, 32),
    "gqa": (130, 257, 6, 2, 32),
    "mqa-decode": (1, 300, 4, 1, 32),
    "more-rows": (300, 140, 2, 1, 32),
    "wide-v": (129, 129, 2, 2, 48),
}
Unfused = Callable[..., tuple[torch.Tensor, Any]]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_dense(rule: Rule, shape: tuple[int, int, int, int, int], unfused: Unfused) -> None:
    rows, keys, heads, heads_kv, dv = shape
    q, k = torch.randn(2, rows, heads, 32), torch.randn(2, keys, heads_kv, 32)
    v = torch.randn(2, keys, heads_kv, dv)
    out, lse = forward(args_of(q, k, v, rule), run=unfused)
    want, want_lse = attend_batch(q, k, v, scale=0.2, rule=rule, used_q=[rows] * 2, used_k=[keys] * 2)
    assert out.is_contiguous() and lse.is_contiguous() and lse.dtype == torch.float32
    torch.testing.assert_close(out.double(), want, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), want_lse, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_used_lengths_differ_per_sequence(rule: Rule, unfused: Unfused) -> None:
    q, k, v = torch.randn(3, 140, 4, 32), torch.randn(3, 300, 2, 32), torch.randn(3, 300, 2, 32)
    used_q, used_k = [140, 7, 0], [290, 129, 300]
    out, lse = forward(
        args_of(
            q,
            k,
            v,
            rule,
            seqused_q=torch.tensor(used_q, dtype=torch.int32),
            seqused_k=torch.tensor(used_k, dtype=torch.int32),
        ),
        run=unfused,
    )
    want, want_lse = attend_batch(q, k, v, scale=0.2, rule=rule, used_q=used_q, used_k=used_k)
    torch.testing.assert_close(out.double(), want, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), want_lse, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_packed_with_empty_sequences(rule: Rule, unfused: Unfused) -> None:
    cu_q, cu_k = [0, 100, 100, 131, 260, 260], [0, 130, 150, 150, 301, 340]
    q, k, v = torch.randn(260, 4, 32), torch.randn(340, 2, 32), torch.randn(340, 2, 32)
    out, lse = forward(
        args_of(
            q,
            k,
            v,
            rule,
            cu_seqlens_q=torch.tensor(cu_q, dtype=torch.int32),
            cu_seqlens_k=torch.tensor(cu_k, dtype=torch.int32),
            max_seqlen_q=129,
            max_seqlen_k=151,
        ),
        run=unfused,
    )
    want, want_lse = attend_packed(q, k, v, scale=0.2, rule=rule, cu_q=cu_q, cu_k=cu_k)
    assert out.shape == (260, 4, 32) and lse.shape == (4, 260)
    torch.testing.assert_close(out.double(), want, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), want_lse, atol=2e-5, rtol=1e-5)


def test_packed_queries_against_a_dense_cache_and_the_reverse(unfused: Unfused) -> None:
    rule = Rule(right=0)
    k, v = torch.randn(2, 150, 2, 32), torch.randn(2, 150, 2, 32)
    packed = torch.randn(90, 4, 32)
    cu_q, used = torch.tensor([0, 60, 90], dtype=torch.int32), torch.tensor([150, 77], dtype=torch.int32)
    out, lse = forward(args_of(packed, k, v, rule, cu_seqlens_q=cu_q, seqused_k=used), run=unfused)
    for b, (start, stop, length) in enumerate(((0, 60, 150), (60, 90, 77))):
        want, want_lse = attend_batch(
            packed[None, start:stop],
            k[b : b + 1],
            v[b : b + 1],
            scale=0.2,
            rule=rule,
            used_q=[stop - start],
            used_k=[length],
        )
        torch.testing.assert_close(out[start:stop].double(), want[0], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(lse[:, start:stop].double(), want_lse[0], atol=2e-5, rtol=1e-5)
    q = torch.randn(2, 50, 4, 32)
    cu_k = torch.tensor([0, 120, 300], dtype=torch.int32)
    out, lse = forward(args_of(q, k.flatten(0, 1), v.flatten(0, 1), rule, cu_seqlens_k=cu_k), run=unfused)
    want, want_lse = attend_packed(
        q.flatten(0, 1),
        k.flatten(0, 1),
        v.flatten(0, 1),
        scale=0.2,
        rule=rule,
        cu_q=[0, 50, 100],
        cu_k=[0, 120, 300],
    )
    torch.testing.assert_close(out.double(), want.view(2, 50, 4, 32), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), want_lse.view(4, 2, 50).transpose(0, 1), atol=2e-5, rtol=1e-5)


def test_left_padding_shifts_the_sequence(unfused: Unfused) -> None:
    q, k, v = torch.randn(2, 3, 2, 32), torch.randn(2, 80, 2, 32), torch.randn(2, 80, 2, 32)
    rule = Rule(left=9, right=0)
    out, lse = forward(
        args_of(
            q,
            k,
            v,
            rule,
            seqused_k=torch.tensor([70, 80], dtype=torch.int32),
            leftpad_k=torch.tensor([68, 11], dtype=torch.int32),
        ),
        run=unfused,
    )
    for b, (first, last) in enumerate(((68, 70), (11, 80))):
        part = slice(first, last)
        want, want_lse = attend_batch(
            q[b : b + 1],
            k[b : b + 1, part],
            v[b : b + 1, part],
            scale=0.2,
            rule=rule,
            used_q=[3],
            used_k=[last - first],
        )
        torch.testing.assert_close(out[b].double(), want[0], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(lse[b].double(), want_lse[0], atol=2e-5, rtol=1e-5)


def test_no_keys_gives_zero_and_plus_infinity(unfused: Unfused) -> None:
    q, k = torch.randn(2, 5, 2, 32), torch.randn(2, 0, 2, 32)
    out, lse = forward(args_of(q, k, k, Rule()), run=unfused)
    assert not out.any() and bool((lse == math.inf).all()) and lse.shape == (2, 2, 5)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_the_separate_lse_pass_crosses_tiles(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flash_attn3_sm121.flex.ranges.LSE_ROWS", 16)
    monkeypatch.setattr("flash_attn3_sm121.flex.ranges.LSE_KEYS", 24)
    q, k = torch.randn(2, 50, 6, 16), torch.randn(2, 90, 2, 16)
    used_q, used_k = [50, 33], [90, 41]
    ranges = dense_ranges(
        50,
        90,
        rule=MaskRule(window_left=rule.left, window_right=rule.right, chunk=rule.chunk),
        device=torch.device("cpu"),
        seqused_q=torch.tensor(used_q),
        seqused_k=torch.tensor(used_k),
    )
    lse = blockwise_lse(q.transpose(1, 2), k.transpose(1, 2), ranges, scale=0.2, softcap=rule.softcap)
    _, want = attend_batch(q, k, k, scale=0.2, rule=rule, used_q=used_q, used_k=used_k)
    torch.testing.assert_close(lse.double(), want, atol=1e-5, rtol=1e-5)
