"""Every mask that upstream knows, as one interval of keys for each query row: O(T) data, no (Tq, Tk) matrix.

Causal, both window sides, chunks, packed sequences and used lengths all keep a contiguous run of keys, so a row is
(lo, hi): key j is kept iff lo <= j < hi. An empty interval is a fully masked row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MaskRule:
    """Window and chunk of a mask, which do not depend on lengths; a window of -1 is unlimited."""

    window_left: int = -1
    window_right: int = -1
    chunk: int = 0


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """The intervals: `lo` and `hi` are int32 of shape (rows,), where all batch entries are alike, or (batch, rows)."""

    lo: Tensor
    hi: Tensor


def _intervals(
    row: Tensor, used_q: Tensor | int, used_k: Tensor | int, base: Tensor | int, *, rule: MaskRule
) -> tuple[Tensor, Tensor]:
    """(lo, hi) of rows that are numbered within their sequence; `base` is the index of the sequence's first key."""
    p = row + (used_k - used_q)  # bottom-right: the last used query meets the last used key
    lo = torch.zeros_like(p)
    hi = torch.zeros_like(p) + used_k
    if rule.window_left >= 0:
        lo = torch.maximum(lo, p - rule.window_left)
    if rule.window_right >= 0:
        hi = torch.minimum(hi, p + (rule.window_right + 1))
    if rule.chunk > 0:
        start = torch.div(p, rule.chunk, rounding_mode="floor") * rule.chunk
        lo, hi = torch.maximum(lo, start), torch.minimum(hi, start + rule.chunk)
    kept = (row < used_q) & (lo < hi)
    zero = torch.zeros_like(lo)
    return (
        torch.where(kept, lo + base, zero).to(torch.int32).contiguous(),
        torch.where(kept, hi + base, zero).to(torch.int32).contiguous(),
    )


def dense_ranges(
    rows: int,
    keys: int,
    *,
    rule: MaskRule,
    device: torch.device,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    leftpad_k: Tensor | None = None,
) -> Ranges:
    """The intervals of a call with (b, s, h, d) tensors, one set for all batch entries where no lengths are given."""
    row = torch.arange(rows, device=device)
    base: Tensor | int = 0 if leftpad_k is None else leftpad_k.long()[:, None]
    used_q: Tensor | int = rows if seqused_q is None else seqused_q.long()[:, None]
    used_k: Tensor | int = (keys if seqused_k is None else seqused_k.long()[:, None]) - base
    lo, hi = _intervals(row, used_q, used_k, base, rule=rule)
    return Ranges(lo=lo, hi=hi)


def packed_ranges(
    rows: int,
    *,
    rule: MaskRule,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    leftpad_k: Tensor | None = None,
) -> Ranges:
    """The intervals of a call with packed (total, h, d) tensors, over which rows and keys are numbered."""
    cu_q, cu_k = cu_seqlens_q.long(), cu_seqlens_k.long()
    at = torch.arange(rows, device=cu_q.device)
    # Rows past the last sequence fall in with it and are then past its used length: fully masked.
    sequence = torch.searchsorted(cu_q[1:].contiguous(), at, right=True).clamp_(max=cu_q.numel() - 2)
    lengths_q = cu_q.diff() if seqused_q is None else seqused_q.long()
    lengths_k = cu_k.diff() if seqused_k is None else seqused_k.long()
    base = cu_k[:-1]
    if leftpad_k is not None:
        lengths_k, base = lengths_k - leftpad_k.long(), base + leftpad_k.long()
    lo, hi = _intervals(at - cu_q[sequence], lengths_q[sequence], lengths_k[sequence], base[sequence], rule=rule)
    return Ranges(lo=lo, hi=hi)


LSE_ROWS, LSE_KEYS = 128, 1024  # the size of a tile


def blockwise_lse(q: Tensor, k: Tensor, ranges: Ranges, *, scale: float, softcap: float) -> Tensor:
    """The LSE where torch's template gives none (on a CPU): one more pass over the scores, in tiles.

    Args:
        q, k: (b, h, s, d) queries and (b, hk, s, d) keys.

    Returns:
        (b, h, s) in fp32, natural log; -inf for rows without a key.
    """
    batch, heads, rows, _ = q.shape
    lse = torch.full((batch, heads, rows), float("-inf"), dtype=torch.float32, device=q.device)
    lo, hi = (x if x.dim() == 2 else x[None].expand(batch, -1) for x in (ranges.lo, ranges.hi))
    for b in range(batch):
        for start in range(0, rows, LSE_ROWS):
            tile = slice(start, min(start + LSE_ROWS, rows))
            row_lo, row_hi = lo[b, tile], hi[b, tile]
            kept = row_lo < row_hi
            if not bool(kept.any()):
                continue
            first, last = int(row_lo[kept].min()), int(row_hi.max())
            for key in range(first, last, LSE_KEYS):
                part = slice(key, min(key + LSE_KEYS, last))
                at = torch.arange(part.start, part.stop, device=q.device)
                outside = (at < row_lo[:, None]) | (at >= row_hi[:, None])
                found = _tile(q[b, :, tile], k[b, :, part], outside, scale=scale, softcap=softcap)
                lse[b, :, tile] = torch.logaddexp(lse[b, :, tile], found)
    return lse


def _tile(q: Tensor, k: Tensor, outside: Tensor, *, scale: float, softcap: float) -> Tensor:
    """The LSE (h, rows) of one tile. The heads of a group become rows of one product, so keys are not repeated."""
    heads, rows, dim = q.shape
    folded = q.float().reshape(k.size(0), -1, dim)
    score = (folded @ k.float().transpose(1, 2)).view(heads, rows, -1) * scale
    if softcap:
        score = softcap * torch.tanh(score / softcap)
    return score.masked_fill_(outside, float("-inf")).logsumexp(-1)
