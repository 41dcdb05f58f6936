"""torch's memory-efficient CUDA attention by the operators that hand out the LSE: for what `flash.py` does not serve.

They are private, with limits that differ between devices and versions, so each kind of call (device, type, head dim,
grouping) is tried and compared once before it is used (`selfcheck.py`); what fails goes the blocked way.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

TYPES = (torch.bfloat16, torch.float16, torch.float32)
# The efficient kernel wants the rows of its bias aligned to 16 bytes, and pads the rows of its LSE.
BIAS_ALIGNMENT = 16
LSE_ALIGNMENT = 32


def _bias(mask: Tensor | None, q: Tensor, keys: int) -> Tensor | None:
    """The mask (R, n) or (B, 1, R, n) with aligned rows, as (B, H, R, n)."""
    if mask is None:
        return None
    spare = -mask.shape[-1] % BIAS_ALIGNMENT
    aligned = functional.pad(mask, (0, spare))[..., :keys] if spare else mask  # a pad of nothing copies
    return aligned.expand(q.shape[0], q.shape[1], -1, -1)


def _spread(tensor: Tensor, heads: int) -> Tensor:
    """One kv head for each query head: the efficient kernel knows no groups."""
    group = heads // tensor.shape[1]
    return tensor if group == 1 else tensor.repeat_interleave(group, dim=1)


def forward(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(B, H, S, d) inputs, any strides but the last, to out (B, H, S, d) and lse (B, H, S)."""
    heads, rows = q.shape[1], q.shape[2]
    bias = _bias(mask, q, k.shape[2])
    out, lse, _seed, _offset = torch.ops.aten._scaled_dot_product_efficient_attention.default(
        q, _spread(k, heads), _spread(v, heads), bias, True, 0.0, causal, scale=scale
    )
    return out, lse[:, :, :rows]


def backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    scale: float,
    causal: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for the keys at hand, given out and LSE over all keys."""
    rows, keys = q.shape[2], k.shape[2]
    heads, kv_heads = q.shape[1], k.shape[1]
    none = torch.zeros((), dtype=torch.long, device=q.device)
    padded = functional.pad(lse, (0, -rows % LSE_ALIGNMENT), value=torch.inf).contiguous()
    dq, dk, dv, _ = torch.ops.aten._scaled_dot_product_efficient_attention_backward.default(
        *(dout, q, _spread(k, heads), _spread(v, heads), _bias(mask, q, keys), out, padded, none, none, 0.0),
        *([True, True, True, False], causal),
        scale=scale,
    )
    return dq, _gathered(dk, kv_heads), _gathered(dv, kv_heads)


def _gathered(gradient: Tensor, kv_heads: int) -> Tensor:
    """The sum over the query heads of each kv head."""
    batch, heads, keys, dim = gradient.shape
    if heads == kv_heads:
        return gradient
    total = gradient.view(batch, kv_heads, heads // kv_heads, keys, dim).sum(2, dtype=torch.float32)
    return total.to(gradient.dtype)
