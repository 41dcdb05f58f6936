"""Partial results over different keys, merged by their LSE."""

from __future__ import annotations

import torch
from torch import Tensor


def combine(
    out_partial: Tensor, lse_partial: Tensor, out: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """out_partial (S, b, s, h, d) and lse_partial (S, b, s, h) to out (b, s, h, d) and lse (b, s, h), contiguous.

    A split with lse -inf saw no key: its data is ignored even where it is NaN. No split with a key: 0 and -inf.
    """
    kind = torch.float64 if out_partial.dtype == torch.float64 else torch.float32
    parts = lse_partial.to(kind)
    total = parts.logsumexp(0) if parts.shape[0] > 0 else parts.new_full(parts.shape[1:], -torch.inf)
    base = torch.where(total == -torch.inf, torch.zeros_like(total), total)
    merged = out_partial.new_zeros(out_partial.shape[1:], dtype=kind)
    for part, lse in zip(out_partial, parts, strict=True):
        share = (lse - base).exp().unsqueeze(-1)
        merged += torch.where(share > 0, part.to(kind) * share, torch.zeros_like(merged))
    dtype = out_dtype or (out.dtype if out is not None else torch.float32)
    if out is not None:
        out.copy_(merged)
        return out, total.to(torch.float32).contiguous()
    return merged.to(dtype).contiguous(), total.to(torch.float32).contiguous()
