"""torch's fused CPU attention, called by its private operator because only that one hands out the LSE.

The operator costs what `scaled_dot_product_attention` costs, takes grouped heads, and its backward accepts a saved out
and LSE, so that a band can be computed in pieces. It is private: before its first use it is tried on a small problem
(`selfcheck.py`), and where it is missing or behaves differently the blocked path takes over.

Its backward adds the shares of grouped query heads to dk and dv in their own type, a rounding for each: grouped bf16
and fp16 heads go there in fp32, which takes no longer.

What it does not do: `is_causal` is aligned top-left; a row that sees nothing gets LSE 0; dv must equal d (v is padded
here); the additive mask must have the type of q.
"""

from __future__ import annotations

import torch
from torch import Tensor

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def forward(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(B, H, S, d) inputs, any strides but the last, to out (B, H, S, d) and lse (B, H, S)."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
        q, k, v, 0.0, causal, attn_mask=mask, scale=scale
    )
    return out, lse


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
    """Gradients for the keys at hand, given out and LSE over all keys; of grouped 16-bit heads they are fp32."""
    if q.shape[1] != k.shape[1] and q.dtype in (torch.bfloat16, torch.float16):
        dout, q, k, v, out = (tensor.float() for tensor in (dout, q, k, v, out))
        mask = None if mask is None else mask.float()
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default(
        dout, q, k, v, out, lse, 0.0, causal, attn_mask=mask, scale=scale
    )
    return dq, dk, dv
