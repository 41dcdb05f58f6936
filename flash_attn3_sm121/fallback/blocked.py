"""Attention in plain torch operations, block by block: exact, for every device and every score function.

The slow but complete path: softcap, qv, dv > d, and devices without a fused kernel that hands out the LSE. Scores of
at most `SCORES` pairs exist at a time. Query heads that share a kv head are folded into the rows, so keys are never
repeated. Products are taken in fp32 (fp64 for fp64 inputs).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flash_attn3_sm121.fallback import geometry as cuts
from flash_attn3_sm121.fallback import masks
from flash_attn3_sm121.fallback.geometry import Geometry

SCORES = 1 << 22
MIN_KEYS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """How a score is made of a product: scale first, then the soft cap."""

    scale: float
    softcap: float = 0.0

    def apply(self, products: Tensor) -> Tensor:
        """Scores from raw products, in place."""
        scores = products.mul_(self.scale)
        if self.softcap > 0.0:
            scores = scores.div_(self.softcap).tanh_().mul_(self.softcap)
        return scores


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def fold(tensor: Tensor, kv_heads: int) -> Tensor:
    """(B, R, H, d) to (B, Hk, G * R, d): the query heads of a kv head become rows, group first."""
    batch, rows, heads, dim = tensor.shape
    if rows == 1:  # decoding: only a view
        return tensor.reshape(batch, kv_heads, heads // kv_heads, dim)
    grouped = tensor.reshape(batch, rows, kv_heads, heads // kv_heads, dim)
    return grouped.permute(0, 2, 3, 1, 4).reshape(batch, kv_heads, heads // kv_heads * rows, dim)


def unfold(tensor: Tensor, rows: int) -> Tensor:
    """The inverse of `fold`: (B, Hk, G * R, d) to (B, R, H, d)."""
    batch, kv_heads, folded, dim = tensor.shape
    if rows == 1:
        return tensor.reshape(batch, 1, kv_heads * folded, dim)
    grouped = tensor.reshape(batch, kv_heads, folded // rows, rows, dim)
    return grouped.permute(0, 3, 1, 2, 4).reshape(batch, rows, kv_heads * (folded // rows), dim)


def hide(scores: Tensor, mask: Tensor, rows: int) -> Tensor:
    """-inf where the mask (R, n) or (B, R, n) is false; scores are folded."""
    batch, kv_heads, folded, keys = scores.shape
    grouped = scores.view(batch, kv_heads, folded // rows, rows, keys)
    spread = mask if mask.dim() == 2 else mask[:, None, None]
    return grouped.masked_fill_(~spread, -torch.inf).view_as(scores)


class Online:
    """The running softmax over key blocks: maximum, denominator and weighted sum."""

    def __init__(self, queries: Tensor, dim_v: int) -> None:
        shape = queries.shape[:-1]
        self.top = queries.new_full((*shape, 1), -torch.inf)
        self.total = queries.new_zeros((*shape, 1))
        self.sum = queries.new_zeros((*shape, dim_v))

    def add(self, scores: Tensor, values: Tensor) -> None:
        """Take in one block; a row that has seen nothing yet stays at -inf without making NaN."""
        top = torch.maximum(self.top, scores.amax(-1, keepdim=True))
        base = torch.where(top == -torch.inf, torch.zeros_like(top), top)
        weights = scores.sub_(base).exp_()
        fade = (self.top - base).exp_()
        self.total = self.total * fade + weights.sum(-1, keepdim=True)
        self.sum = self.sum.mul_(fade).add_(weights @ values)
        self.top = top

    def result(self) -> tuple[Tensor, Tensor]:
        """(out, lse without its last dimension); rows that saw nothing give 0 and -inf."""
        empty = self.top == -torch.inf
        one = torch.ones_like(self.total)
        out = self.sum / torch.where(empty, one, self.total)
        lse = torch.where(empty, self.top, self.top + torch.where(empty, one, self.total).log())
        return out, lse.squeeze(-1)


def key_step(batch: int, heads: int, rows: int) -> int:
    return max(MIN_KEYS, min(4096, SCORES // max(batch * heads * rows, 1)))


def row_blocks(geometry: Geometry) -> list[tuple[int, int, int, int]]:
    """(row, row_end, low, high) of blocks of live rows with the keys that each sees."""
    blocks = []
    for row in range(geometry.dead, geometry.rows, cuts.BLOCK_ROWS):
        end = min(row + cuts.BLOCK_ROWS, geometry.rows)
        blocks.append((row, end, geometry.low(row), geometry.high(end - 1)))
    return blocks


def needs_mask(geometry: Geometry, row: int, row_end: int, key: int, key_end: int) -> bool:
    return geometry.low(row_end - 1) > key or geometry.high(row) < key_end


def products(folded: Tensor, folded_v: Tensor | None, keys: Tensor, values: Tensor) -> Tensor:
    """What scores are made of: q with the keys and, where there is a qv, that with the values, all (B, Hk, _, d)."""
    found = folded @ keys.transpose(-1, -2)
    return found if folded_v is None else found.add_(folded_v @ values.transpose(-1, -2))


def forward(
    q: Tensor, k: Tensor, v: Tensor, qv: Tensor | None, geometry: Geometry, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """q (B, S, H, d), k and v (B, T, Hk, d | dv) to out (B, S, H, dv) and lse (B, H, S), both in the sum's type."""
    batch, rows, heads, _ = q.shape
    kv_heads, kind = k.shape[2], accumulator(q.dtype)
    out = q.new_zeros((batch, rows, heads, v.shape[-1]), dtype=kind)
    lse = q.new_full((batch, heads, rows), -torch.inf, dtype=kind)
    for row, end, low, high in row_blocks(geometry):
        count = end - row
        folded = fold(q[:, row:end].to(kind), kv_heads)
        folded_v = fold(qv[:, row:end].to(kind), kv_heads) if qv is not None else None
        online = Online(folded, v.shape[-1])
        step = key_step(batch, heads, count)
        for key in range(low, high, step):
            key_end = min(key + step, high)
            keys = k[:, key:key_end].to(kind).transpose(1, 2)
            values = v[:, key:key_end].to(kind).transpose(1, 2)
            scores = scoring.apply(products(folded, folded_v, keys, values))
            if needs_mask(geometry, row, end, key, key_end):
                scores = hide(scores, masks.block(geometry, row, count, key, key_end - key, device=q.device), count)
            online.add(scores, values)
        block_out, block_lse = online.result()
        out[:, row:end] = unfold(block_out, count)
        lse[:, :, row:end] = block_lse.reshape(batch, heads, count)
    return out, lse


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What the forward pass leaves for the backward: per row, nothing more."""

    lse: Tensor  # (B, H, S), -inf where a row saw nothing
    delta: Tensor  # (B, H, S): rowsum(dout * out) minus the gradient of the lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, saved: Saved, geometry: Geometry, scoring: Scoring
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) in the sum's type; scores are made again from q, k and the lse."""
    batch, _, heads, _ = q.shape
    kv_heads, kind = k.shape[2], accumulator(q.dtype)
    dq = torch.zeros_like(q, dtype=kind, memory_format=torch.contiguous_format)
    dk = torch.zeros_like(k, dtype=kind, memory_format=torch.contiguous_format)
    dv = torch.zeros_like(v, dtype=kind, memory_format=torch.contiguous_format)
    for row, end, low, high in row_blocks(geometry):
        count = end - row
        folded = fold(q[:, row:end].to(kind), kv_heads)
        folded_out = fold(dout[:, row:end].to(kind), kv_heads)
        lse = saved.lse[:, :, row:end].to(kind).reshape(batch, kv_heads, -1, 1)
        delta = saved.delta[:, :, row:end].to(kind).reshape(batch, kv_heads, -1, 1)
        folded_dq = torch.zeros_like(folded)
        step = key_step(batch, heads, count)
        for key in range(low, high, step):
            key_end = min(key + step, high)
            keys = k[:, key:key_end].to(kind).transpose(1, 2)
            values = v[:, key:key_end].to(kind).transpose(1, 2)
            scores = scoring.apply(folded @ keys.transpose(-1, -2))
            slope = 1.0 - (scores / scoring.softcap).square_() if scoring.softcap > 0.0 else None
            if needs_mask(geometry, row, end, key, key_end):
                scores = hide(scores, masks.block(geometry, row, count, key, key_end - key, device=q.device), count)
            weights = scores.sub_(lse).exp_()
            dv[:, key:key_end] += (weights.transpose(-1, -2) @ folded_out).transpose(1, 2)
            slopes = (folded_out @ values.transpose(-1, -2)).sub_(delta).mul_(weights)
            if slope is not None:
                slopes = slopes.mul_(slope)
            slopes = slopes.mul_(scoring.scale)
            folded_dq += slopes @ keys
            dk[:, key:key_end] += (slopes.transpose(-1, -2) @ folded).transpose(1, 2)
        dq[:, row:end] = unfold(folded_dq, count)
    return dq, dk, dv
