"""The LSE where torch's template gives none (CPU): one more pass over the scores, in tiles, never a (Tq, Tk) matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from flash_attn3_sm121.flex.ranges import Ranges

ROWS = 128


def blockwise_lse(q: Tensor, k: Tensor, ranges: Ranges, *, scale: float, softcap: float) -> Tensor:
    """(b, h, s) fp32, natural log; rows without a key are -inf. q and k are (b, h, s, d)."""
    batch, heads, rows, _ = q.shape
    group = heads // k.size(1)
    lse = torch.full((batch, heads, rows), float("-inf"), dtype=torch.float32, device=q.device)
    lo, hi = (x if x.dim() == 2 else x[None].expand(batch, -1) for x in (ranges.lo, ranges.hi))
    for b in range(batch):
        for start in range(0, rows, ROWS):
            stop = min(start + ROWS, rows)
            row_lo, row_hi = lo[b, start:stop], hi[b, start:stop]
            kept = row_lo < row_hi
            if not bool(kept.any()):
                continue
            first, last = int(row_lo[kept].min()), int(row_hi.max())
            keys = k[b, :, first:last].float().repeat_interleave(group, 0)
            score = (q[b, :, start:stop].float() @ keys.transpose(1, 2)) * scale
            if softcap:
                score = softcap * torch.tanh(score / softcap)
            at = torch.arange(first, last, device=q.device)
            outside = (at < row_lo[:, None]) | (at >= row_hi[:, None])
            lse[b, :, start:stop] = score.masked_fill_(outside, float("-inf")).logsumexp(-1)
    return lse
