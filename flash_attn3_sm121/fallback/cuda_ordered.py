"""The CUDA kernel for a backward that must give the same bits each time.

torch's flash backward adds up dq in whatever order its blocks finish, unless the whole process is set to deterministic
algorithms. The efficient one is given its keys in one part: then one block adds up all of a head's dq, in order.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from flash_attn3_sm121.fallback.cuda_kernel import LSE_ALIGNMENT, TYPES, bias_of, forward, gathered, spread

__all__ = ["TYPES", "backward", "forward"]

_NO_MASK, _CAUSAL_FROM_TOP_LEFT = 0, 1


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
    """Gradients for the keys at hand, given out and LSE over all keys. (B, H, S, d), as everywhere."""
    rows, keys = q.shape[2], k.shape[2]
    heads, kv_heads = q.shape[1], k.shape[1]
    none = torch.zeros((), dtype=torch.long, device=q.device)
    padded = functional.pad(lse, (0, -rows % LSE_ALIGNMENT), value=torch.inf).contiguous()
    tensors = (tensor.transpose(1, 2) for tensor in (dout, q, spread(k, heads), spread(v, heads)))
    dq, dk, dv, _ = torch.ops.aten._efficient_attention_backward.default(
        *(*tensors, bias_of(mask, q, keys), out.transpose(1, 2), None, None, rows, keys, padded, 0.0, none, none),
        *(_CAUSAL_FROM_TOP_LEFT if causal else _NO_MASK, False),
        scale=scale,
        num_splits_key=1,
    )
    dq, dk, dv = (tensor.transpose(1, 2) for tensor in (dq, dk, dv))
    return dq, gathered(dk, kv_heads), gathered(dv, kv_heads)
