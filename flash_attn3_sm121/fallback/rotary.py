"""Rotary embedding of new keys and of the queries that meet them, at positions that may differ per sequence.

Tensor arithmetic only: nothing is read on the host. Computed in fp32 and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flash_attn3_sm121.fallback.blocked import accumulator
from flash_attn3_sm121.fallback.problem import FP8


def rotate(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, *, interleaved: bool, dtype: torch.dtype) -> Tensor:
    """x (..., H, d) at `positions` (...): pairs (2i, 2i + 1) when interleaved, else (i, i + rd / 2); result in dtype.

    Positions are clamped into the table: only rows of padding, whose result is not used, may stand outside.
    """
    kind = accumulator(cos.dtype if x.dtype in FP8 else torch.promote_types(x.dtype, cos.dtype))
    half = cos.shape[-1]
    index = positions.long().clamp(0, max(cos.shape[0] - 1, 0))
    c, s = (_rows(table, index).to(kind).unsqueeze(-2) for table in (cos, sin))
    turned = turn(x[..., : 2 * half].to(kind), c, s, interleaved=interleaved)
    return torch.cat((turned.to(dtype), x[..., 2 * half :].to(dtype)), -1)


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """table[index], by bytes in fp8, which torch 2.9 does not index on a CPU."""
    return table.view(torch.uint8)[index].view(table.dtype) if table.dtype in FP8 else table[index]


def turn(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """x (..., 2 * half) with each of its pairs turned by the angle of cos and sin (..., half)."""
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def token_places(offsets: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """For packed tokens 0 .. total - 1: the sequence and the index within it (tokens past the end: the last one)."""
    tokens = torch.arange(total, device=offsets.device, dtype=offsets.dtype)
    owner = torch.searchsorted(offsets[1:].contiguous(), tokens, right=True)
    owner = owner.clamp(max=max(offsets.numel() - 2, 0))
    return owner, tokens - offsets[:-1][owner]


def positions(base: Tensor, offsets: Tensor | None, rows: int, *, advance: bool) -> Tensor:
    """Where each row stands: base + i, or base for all of a sequence. (batch, rows), or (rows,) when packed."""
    if offsets is None:
        steps = torch.arange(rows, device=base.device, dtype=base.dtype) if advance else base.new_zeros(rows)
        return base[:, None] + steps
    owner, index = token_places(offsets, rows)
    return base[owner] + index if advance else base[owner]
