"""Rows of padding in a decode batch: a negative cache_seqlens writes nothing, sees nothing and harms nobody.

transformers pads decode batches to powers of two with rows of cache_seqlens -1 and page numbers -1; upstream's kernels
skip them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flash_attn3_sm121.call.arguments import ForwardArgs
from flash_attn3_sm121.fallback import host, static

Forward = Callable[[ForwardArgs], tuple[Tensor, Tensor]]
WAYS = {"host": host.forward, "static": static.forward, "unchecked": functools.partial(static.forward, check=False)}
ENGINES = pytest.mark.parametrize("forward", list(WAYS.values()), ids=list(WAYS))


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def call(*, lengths: tuple[int, ...], paged: bool, new: int = 1, packed: bool = False) -> ForwardArgs:
    """A decode batch with `new` keys a row; each sequence has two pages of 4 positions, or a row of 8."""
    torch.manual_seed(3)
    batch = len(lengths)
    cache = torch.randn(2 * batch, 4, 2, 16) if paged else torch.randn(batch, 8, 2, 16)
    table = torch.arange(2 * batch, dtype=torch.int32).view(batch, 2)
    table[torch.tensor(lengths) < 0] = -1
    k_new, v_new = torch.randn(2, batch, new, 2, 16)
    cu = torch.arange(batch + 1, dtype=torch.int32) * new
    return ForwardArgs(
        q=torch.randn(batch, new, 4, 16),
        k=cache,
        v=cache.clone(),
        k_new=k_new.flatten(0, 1) if packed else k_new,
        v_new=v_new.flatten(0, 1) if packed else v_new,
        cu_seqlens_k_new=cu if packed else None,
        seqused_k=ints(*lengths),
        page_table=table if paged else None,
        softmax_scale=0.25,
        causal=True,
        window_right=0,
    )


def alone(args: ForwardArgs, row: int) -> ForwardArgs:
    """One row of a call, over a cache of its own."""
    new = args.q.shape[1]
    assert args.k_new is not None and args.v_new is not None and args.seqused_k is not None
    one = slice(row, row + 1)
    tokens = slice(row * new, (row + 1) * new) if args.cu_seqlens_k_new is not None else one
    return replace(
        args,
        q=args.q[one],
        k=args.k.clone() if args.page_table is not None else args.k[one].clone(),
        v=args.v.clone() if args.page_table is not None else args.v[one].clone(),
        k_new=args.k_new[tokens].view(1, new, 2, 16),
        v_new=args.v_new[tokens].view(1, new, 2, 16),
        cu_seqlens_k_new=None,
        seqused_k=args.seqused_k[one],
        page_table=None if args.page_table is None else args.page_table[one],
    )


@ENGINES
@pytest.mark.parametrize("lengths", [(4, -1), (-1, 3), (-1, 2, -7, 5), (-1, -1)], ids=str)
@pytest.mark.parametrize("paged", [False, True], ids=["dense", "paged"])
@pytest.mark.parametrize(("new", "packed"), [(1, False), (3, False), (2, True)], ids=["one", "three", "packed"])
def test_padding_is_skipped(forward: Forward, lengths: tuple[int, ...], paged: bool, new: int, packed: bool) -> None:
    args = call(lengths=lengths, paged=paged, new=new, packed=packed)
    before = args.k.clone()
    expected = args.k.clone()
    rows = {row: alone(args, row) for row, length in enumerate(lengths) if length >= 0}
    results = {row: host.forward(one) for row, one in rows.items()}
    for row, one in rows.items():
        if paged:
            changed = one.k != before
            expected[changed] = one.k[changed]
        else:
            expected[row] = one.k[0]
    out, lse = forward(args)
    assert torch.equal(args.k, expected), "the keys of the other rows are appended, and nothing else is written"
    for row, length in enumerate(lengths):
        if length < 0:
            assert not out[row].any() and torch.isneginf(lse[row]).all()
        else:
            torch.testing.assert_close(out[row : row + 1], results[row][0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(lse[row : row + 1], results[row][1], atol=1e-5, rtol=1e-5)


@ENGINES
def test_padding_without_appending(forward: Forward) -> None:
    args = replace(call(lengths=(5, -1), paged=True), k_new=None, v_new=None)
    out, lse = forward(args)
    assert out[0].any() and not out[1].any() and torch.isneginf(lse[1]).all()


@ENGINES
def test_padding_with_rotary_and_a_row_that_is_nowhere(forward: Forward) -> None:
    table = torch.rand(8, 8)
    args = replace(
        call(lengths=(2, -1), paged=False), rotary_cos=table, rotary_sin=table, kv_batch_idx=ints(1, -1), window_left=3
    )
    before = args.k.clone()
    out, _ = forward(args)
    assert out[0].any() and not out[1].any()
    assert torch.equal(args.k[0], before[0]) and not torch.equal(args.k[1, 2], before[1, 2])


@ENGINES
def test_nothing_but_padding_with_lengths_and_rows_that_are_nowhere(forward: Forward) -> None:
    args = replace(call(lengths=(-50, -9), paged=True), kv_batch_idx=ints(9, -9))
    before = args.k.clone()
    out, _ = forward(args)
    assert not out.any() and torch.equal(args.k, before)


@ENGINES
def test_packed_tokens_of_no_sequence(forward: Forward) -> None:
    args = call(lengths=(), paged=False, packed=True)
    table = torch.ones(8, 8)
    args = replace(
        args, q=torch.randn(3, 4, 16), cu_seqlens_q=ints(0), max_seqlen_q=0, k_new=torch.randn(2, 2, 16),
        v_new=torch.randn(2, 2, 16), rotary_cos=table, rotary_sin=table,
    )  # fmt: skip
    out, _ = forward(args)
    assert out.shape == (3, 4, 16) and not out.any()


@ENGINES
def test_a_row_that_is_all_padding_on_the_left_needs_no_page(forward: Forward) -> None:
    args = replace(call(lengths=(0, 8), paged=True), k_new=None, v_new=None, leftpad_k=ints(1, 3))
    assert args.page_table is not None
    args.page_table[0] = -1
    args = replace(args, q=torch.randn(2, 2, 4, 16))
    out, lse = forward(args)
    assert not out[0].any() and torch.isneginf(lse[0]).all() and out[1].all()


@pytest.mark.parametrize("forward", [host.forward, static.forward], ids=["host", "static"])
def test_a_page_of_a_row_that_is_used_must_exist(forward: Forward) -> None:
    args = call(lengths=(4, 2), paged=True)
    assert args.page_table is not None
    args.page_table[1] = -1
    before = args.k.clone()
    with pytest.raises(RuntimeError, match="page"):
        forward(args)
    assert torch.equal(args.k, before)
