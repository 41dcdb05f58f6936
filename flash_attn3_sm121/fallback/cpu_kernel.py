"""torch's fused CPU attention, called by its private operator because only that one hands out the LSE.

The operator costs what `scaled_dot_product_attention` costs, takes grouped heads, and its backward accepts a saved out
and LSE, so that a band can be computed in pieces. It is private: before its first use it is run on a tiny problem and
compared with plain arithmetic, and where it is missing or behaves differently the blocked path takes over.

What it does not do: `is_causal` is aligned top-left; a row that sees nothing gets LSE 0; dv must equal d (v is padded
here); the additive mask must have the type of q.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor
from torch.nn import functional

log = logging.getLogger(__name__)

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
    """Gradients for the keys at hand, given out and LSE over all keys."""
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default(
        dout, q, k, v, out, lse, 0.0, causal, attn_mask=mask, scale=scale
    )
    return dq, dk, dv


def padded(tensor: Tensor, dim: int) -> Tensor:
    """Zeros added to the last dimension up to `dim`, and a last stride of 1."""
    if tensor.shape[-1] != dim:
        return functional.pad(tensor, (0, dim - tensor.shape[-1]))
    return tensor if tensor.stride(-1) == 1 or tensor.numel() == 0 else tensor.contiguous()


def _probe() -> str | None:
    """Run the operators on a tiny grouped, masked problem; the reason why they can't be used, or None."""
    for name in ("", "_backward"):
        if not hasattr(torch.ops.aten, f"_scaled_dot_product_flash_attention_for_cpu{name}"):
            return f"torch {torch.__version__} has no _scaled_dot_product_flash_attention_for_cpu{name}"
    generator = torch.Generator().manual_seed(0)
    q, dout = (torch.randn(1, 4, 3, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    k, v = (torch.randn(1, 2, 5, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.zeros(3, 5, dtype=torch.float64)
    mask[0, 2:] = -torch.inf
    scores = 0.3 * q @ k.repeat_interleave(2, 1).transpose(-1, -2) + mask
    weights = scores.softmax(-1)
    want = weights @ v.repeat_interleave(2, 1)
    want_dv = (weights.transpose(-1, -2) @ dout).view(1, 2, 2, 5, 8).sum(2)
    try:
        out, lse = forward(q, k, v, scale=0.3, mask=mask)
        dv = backward(dout, q, k, v, out, lse, scale=0.3, mask=mask)[2]
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        return f"torch {torch.__version__} refuses the call: {error}"
    pairs = ((out, want), (lse, scores.logsumexp(-1)), (dv, want_dv))
    if not all(a.shape == b.shape and torch.allclose(a, b, atol=1e-9) for a, b in pairs):
        return f"torch {torch.__version__} computes something else than expected"
    return None


@functools.cache
def refusal() -> str | None:
    """Why the fused operators can't be used in this process, or None; found out once."""
    with torch.no_grad():
        reason = _probe()
    if reason is not None:
        log.warning("fused CPU attention is not used, the fallback will be slow: %s", reason)
    return reason
