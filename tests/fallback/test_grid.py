"""Thousands of random small calls over the whole grid of features, against the fp64 reference."""

from __future__ import annotations

import copy

import pytest
import torch

from flash_attn3_sm121 import fallback
from flash_attn3_sm121.call.arguments import ForwardArgs
from tests.fallback import generate, reference
from tests.fallback.compare import LSE_TOLERANCE, TOLERANCE, assert_close

CHUNK = 25


def cases(start: int, end: int) -> list[tuple[int, str]]:
    """Chunks of seeds: all with the usual and with tiny cuts, a quarter of them without the fused kernel."""
    chunks = range(start, end, CHUNK)
    return [(chunk, cut) for cut in ("usual", "tiny") for chunk in chunks] + [(chunk, "plain") for chunk in chunks[::4]]


def check(args: ForwardArgs) -> None:
    """The engine gives what the reference gives, in the promised types and layouts, and leaves the same cache."""
    want = reference.expected(args)
    mine = copy.deepcopy(args)
    out, lse = fallback.forward(mine)
    assert out.dtype == args.q.dtype and out.is_contiguous()
    assert lse.dtype == torch.float32 and lse.is_contiguous()
    assert_close(out, want.out, TOLERANCE[args.q.dtype], "out")
    assert_close(lse, want.lse, LSE_TOLERANCE[args.q.dtype], "lse")
    assert torch.equal(mine.q, args.q), "q was modified"
    if args.k_new is not None:
        assert_close(mine.k, want.k.double(), 1e-2 if mine.k.dtype == torch.bfloat16 else 2e-3, "k cache")
        assert torch.equal(mine.v, want.v), "v cache"
        untouched = (want.k == args.k).all(-1).all(-1)
        assert torch.equal(mine.k[untouched], args.k[untouched]), "a token outside the new ones was written"
    else:
        assert torch.equal(mine.k, args.k) and torch.equal(mine.v, args.v)


def run(make: str, start: int, count: int) -> None:
    for seed in range(start, start + count):
        args = getattr(generate, make)(seed)
        try:
            check(args)
        except Exception as error:
            raise AssertionError(f"generate.{make}({seed}): {error}") from error


@pytest.mark.parametrize(("start", "cuts"), cases(0, 1000), indirect=["cuts"])
def test_dense_and_packed(start: int, cuts: str) -> None:
    run("dense", start, CHUNK)


@pytest.mark.parametrize(("start", "cuts"), cases(100_000, 101_000), indirect=["cuts"])
def test_cache(start: int, cuts: str) -> None:
    run("cache", start, CHUNK)


@pytest.mark.slow
@pytest.mark.parametrize("cuts", ["usual", "tiny", "plain"], indirect=True)
@pytest.mark.parametrize("make", ["dense", "cache"])
@pytest.mark.parametrize("start", range(200_000, 204_000, 200))
def test_more(make: str, start: int, cuts: str) -> None:
    run(make, start, 200)
