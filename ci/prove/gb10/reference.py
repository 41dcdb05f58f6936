"""Attention by its formula, in fp64, one sequence at a time: shares no code with a kernel or with the fallbacks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Windows by a case's mask: keys to the left and to the right of a row's own place. The wide one has whole tiles inside,
# the middle one (of sweeps) is wider than a tile, so that its left edge alone cuts some.
WINDOWS = {"local": (37, 5), "middle": (130, 9), "wide": (400, 40)}
# Of a mask with chunks: a row sees the keys of its own place's chunk, which may be one.
CHUNKS = {"chunk": 45, "causal chunk": 45, "own chunk": 1}


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What stands between Q, K and the softmax."""

    mask: str
    softcap: float
    scale: float
    sinks: Tensor | None = None  # a head each: the score of one more key, whose value is zero

    def keep(self, rows: int, keys: int) -> Tensor:
        """Which key each row sees; the last row sees the last key."""
        import torch

        place = torch.arange(rows)[:, None] + keys - rows
        key = torch.arange(keys)[None]
        kept = torch.ones(rows, keys, dtype=torch.bool)
        if self.mask == "causal":
            kept = key <= place
        elif self.mask in WINDOWS:
            # As upstream: a window at least as wide as the keys or rows is none.
            left, right = WINDOWS[self.mask]
            kept = (key >= place - left) & (key <= place + right)
        elif self.mask in CHUNKS:
            kept = key // CHUNKS[self.mask] == place // CHUNKS[self.mask]
            kept &= (key <= place) | ("causal" not in self.mask)
        return kept

    def attention(self, q: Tensor, k: Tensor, v: Tensor, *, fp8: bool = False) -> tuple[Tensor, Tensor]:
        """(rows, heads, d), (keys, groups, d), (keys, groups, dv), in fp64: the output, and the LSE by head and row.

        With `fp8` the weights are rounded to e4m3, the largest of a row being 256, and the output to bf16.
        """
        import torch

        sinks = self.sinks
        if k.shape[0] == 0:
            empty = torch.full((q.shape[1], q.shape[0]), -math.inf, dtype=torch.float64)
            nothing = (q * 0.0).sum(-1, keepdim=True).expand(-1, -1, v.shape[-1])
            return nothing, empty if sinks is None else torch.logaddexp(empty, sinks[:, None])
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * self.scale
        if self.softcap:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        kept = self.keep(q.shape[0], k.shape[0])
        scores = scores.masked_fill(~kept, -math.inf)
        lse = scores.logsumexp(-1)
        if sinks is not None:
            lse = torch.logaddexp(lse, sinks[:, None])
        weights = torch.where(kept, (scores - lse.where(lse.isfinite(), torch.zeros_like(lse))[..., None]).exp(), 0.0)
        if fp8:
            unit = weights.amax(-1, keepdim=True).clamp(min=1e-30) / 256
            weights = (weights / unit).float().to(torch.float8_e4m3fn).double() * unit
            return torch.einsum("hqk,khd->qhd", weights, v).bfloat16().double(), lse
        return torch.einsum("hqk,khd->qhd", weights, v), lse


def turned(x: Tensor, cos: Tensor, sin: Tensor, places: Tensor, *, pairs: bool) -> Tensor:
    """Rotary embedding of x (rows, heads, d) at the given places: in fp32, rounded once, as upstream has it."""
    import torch

    half = cos.shape[1]
    c, s = (table[places][:, None].float() for table in (cos, sin))
    first, rest = x[..., : 2 * half].float(), x[..., 2 * half :]
    left, right = (first[..., 0::2], first[..., 1::2]) if pairs else (first[..., :half], first[..., half:])
    a, b = left * c - right * s, left * s + right * c
    both = torch.stack((a, b), dim=-1).flatten(-2) if pairs else torch.cat((a, b), dim=-1)
    return torch.cat((both.to(x.dtype), rest), dim=-1)
