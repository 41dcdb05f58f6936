"""Attention sinks: one learned logit a head that takes part in the softmax's denominator and has no value.

The LSE that a caller gets includes the sink. So `exp(score - lse)` is the weight that was used, partial results can
still be merged by LSE (count the sink in one part only), and the backward needs nothing new for q, k and v. A row that
sees no key gives out 0 and the sink itself as LSE.
"""

from __future__ import annotations

import torch
from torch import Tensor


def include(out: Tensor, lse: Tensor, s_aux: Tensor) -> tuple[Tensor, Tensor]:
    """Add the sink (H,) to a result: out (B, S, H, dv), in place, and lse (B, H, S)."""
    sink = s_aux.to(lse.dtype)[:, None]
    total = torch.logaddexp(lse, sink.expand_as(lse))
    # A sink of -inf must change nothing, also in rows that see nothing (-inf minus -inf).
    share = torch.where(lse == -torch.inf, torch.zeros_like(lse), (lse - total).exp())
    out.mul_(share.transpose(1, 2).unsqueeze(-1))
    return out, total


def gradient(lse: Tensor, delta: Tensor, s_aux: Tensor) -> Tensor:
    """(H,) from lse and delta (B, H, S), where delta is rowsum(dout * out) minus the gradient of the lse."""
    sink = s_aux.to(lse.dtype)[:, None]
    shares = torch.where(lse.isfinite(), (sink - lse).exp() * delta, torch.zeros_like(lse))
    return -shares.sum((0, 2))
