"""Merging partial results: the definition, splits without keys, layouts and types."""

from __future__ import annotations

import pytest
import torch

import flash_attn3_sm121 as fa3
from flash_attn3_sm121 import fallback
from flash_attn3_sm121.call.arguments import ForwardArgs
from tests.fallback.compare import assert_close


def parts(splits: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    out = torch.randn(splits, 2, 5, 3, 8, generator=generator)
    lse = torch.randn(splits, 2, 3, 5, generator=generator).transpose(-1, -2)  # stride(-2) == 1, as upstream wants
    return out, lse * 5


def test_the_definition() -> None:
    out, lse = parts()
    weights = lse.double().softmax(0)
    merged, total = fallback.combine(out, lse)
    assert merged.dtype == total.dtype == torch.float32 and merged.is_contiguous() and total.is_contiguous()
    assert_close(merged, (out.double() * weights.unsqueeze(-1)).sum(0), 1e-6, "out")
    assert_close(total, lse.double().logsumexp(0), 1e-6, "lse")


@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_splits_without_keys_are_ignored_whatever_they_hold(garbage: float) -> None:
    out, lse = parts()
    want = fallback.combine(out[:2], lse[:2])
    lse[2], out[2] = -torch.inf, garbage
    for found, expected in zip(fallback.combine(out, lse), want, strict=True):
        assert torch.equal(found, expected)


def test_no_split_with_keys_gives_zero_and_minus_infinity() -> None:
    out, lse = parts()
    lse[:, 0, 1], out[:, 0, 1] = -torch.inf, torch.nan
    merged, total = fallback.combine(out, lse)
    assert not merged[0, 1].any() and (total[0, 1] == -torch.inf).all()
    assert not merged.isnan().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_result_types(dtype: torch.dtype) -> None:
    out, lse = parts()
    want = fallback.combine(out, lse)[0].to(dtype)
    assert torch.equal(fallback.combine(out, lse, out_dtype=dtype)[0], want)
    target = torch.empty(2, 5, 3, 8, dtype=dtype)
    assert fallback.combine(out, lse, out=target)[0] is target
    assert torch.equal(target, want)


def test_too_many_splits_and_wrong_shapes() -> None:
    with pytest.raises(ValueError, match="at most 256"):
        fa3.flash_attn_combine(torch.zeros(257, 1, 1, 1, 8), torch.zeros(257, 1, 1, 1))
    with pytest.raises(ValueError, match="lse_partial must have shape"):
        fa3.flash_attn_combine(torch.zeros(2, 1, 4, 1, 8), torch.zeros(2, 1, 1, 4))


def test_attention_over_two_halves_is_attention_over_all() -> None:
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(2, 3, 4, 16, generator=generator)
    k, v = (torch.randn(2, 10, 2, 16, generator=generator) for _ in range(2))
    whole = fallback.forward(ForwardArgs(q=q, k=k, v=v, softmax_scale=0.25))
    halves = [
        fallback.forward(ForwardArgs(q=q, k=k[:, span], v=v[:, span], softmax_scale=0.25))
        for span in (slice(0, 4), slice(4, 10))
    ]
    out, lse = fallback.combine(
        torch.stack([o for o, _ in halves]), torch.stack([e.transpose(1, 2) for _, e in halves])
    )
    assert_close(out, whole[0].double(), 1e-5, "out")
    assert_close(lse, whole[1].transpose(1, 2).double(), 1e-5, "lse")
