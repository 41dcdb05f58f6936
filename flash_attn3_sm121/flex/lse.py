"""The LSE where torch's template gives none (CPU): one more pass over the scores, in tiles, never a (Tq, Tk) matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from flash_attn3_sm121.flex.ranges import Ranges

ROWS, KEYS = 128, 1024


def blockwise_lse(q: Tensor, k: Tensor, ranges: Ranges, *, scale: float, softcap: float) -> Tensor:
    """(b, h, s) fp32, natural log; rows without a key are -inf. q and k are (b, h, s, d)."""
    batch, heads, rows, _ = q.shape
    lse = torch.full((batch, heads, rows), float("-inf"), dtype=torch.float32, device=q.device)
    lo, hi = (x if x.dim() == 2 else x[None].expand(batch, -1) for x in (ranges.lo, ranges.hi))
    for b in range(batch):
        for start in range(0, rows, ROWS):
            tile = slice(start, min(start + ROWS, rows))
            row_lo, row_hi = lo[b, tile], hi[b, tile]
            kept = row_lo < row_hi
            if not bool(kept.any()):
                continue
            first, last = int(row_lo[kept].min()), int(row_hi.max())
            for key in range(first, last, KEYS):
                part = slice(key, min(key + KEYS, last))
                at = torch.arange(part.start, part.stop, device=q.device)
                outside = (at < row_lo[:, None]) | (at >= row_hi[:, None])
                found = _tile(q[b, :, tile], k[b, :, part], outside, scale=scale, softcap=softcap)
                lse[b, :, tile] = torch.logaddexp(lse[b, :, tile], found)
    return lse


def _tile(q: Tensor, k: Tensor, outside: Tensor, *, scale: float, softcap: float) -> Tensor:
    """(h, rows) of one tile. The heads of a group are rows of one product: keys are not repeated for them."""
    heads, rows, dim = q.shape
    folded = q.float().reshape(k.size(0), -1, dim)
    score = (folded @ k.float().transpose(1, 2)).view(heads, rows, -1) * scale
    if softcap:
        score = softcap * torch.tanh(score / softcap)
    return score.masked_fill_(outside, float("-inf")).logsumexp(-1)
