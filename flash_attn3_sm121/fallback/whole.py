"""Dense calls on a CPU that one call of torch's fused kernel answers, without cutting the mask into pieces.

Plain causal attention over a square, and attention without a mask: torch's kernel does nothing in vain there. What is
saved is the Python around it: a hundred microseconds, and four times that after a kernel that emptied the caches.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from flash_attn3_sm121.call.arguments import ForwardArgs
from flash_attn3_sm121.fallback import cpu_kernel, kernels
from flash_attn3_sm121.fallback.blocked import Scoring
from flash_attn3_sm121.fallback.decode import FOLDED_ROWS

# Fetched in C, in one go: this runs on every call.
_EXTRAS = operator.attrgetter(
    *("k_new", "v_new", "qv", "out", "cu_seqlens_q", "cu_seqlens_k", "cu_seqlens_k_new", "seqused_q", "seqused_k"),
    *("page_table", "kv_batch_idx", "leftpad_k", "rotary_cos", "rotary_sin", "seqlens_rotary", "s_aux"),
)
_NONE = (None,) * 16


def serves(args: ForwardArgs) -> bool:
    """Whether one call of the kernel is enough. Shapes, dtypes, strides and arguments that are no tensors decide it."""
    q, k, v = args.q, args.k, args.v
    if q.device.type != "cpu" or args.window_left >= 0 or args.attention_chunk > 0 or _EXTRAS(args) != _NONE:
        return False
    if args.causal:
        fits = q.shape[1] == k.shape[1] > 1
    else:
        fits = args.window_right < 0 and q.shape[1] * q.shape[2] > FOLDED_ROWS * k.shape[2]
    alike = q.dtype == k.dtype == v.dtype and q.dtype in cpu_kernel.TYPES and q.shape[-1] == v.shape[-1]
    if not fits or not alike or not q.stride(-1) == k.stride(-1) == v.stride(-1) == 1 or not q.numel() > 0 < k.numel():
        return False
    scoring = Scoring(scale=args.softmax_scale, softcap=args.softcap)
    return kernels.pick(q, k, v, None, scoring) is cpu_kernel


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """(out, lse) of a call that `serves` accepts; the lse is not contiguous."""
    out, lse = cpu_kernel.forward(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=scale, causal=causal)
    return out.transpose(1, 2).contiguous(), lse.to(torch.float32)


def dense_op(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, causal: bool, *_: Any
) -> tuple[Tensor, Tensor, None, None]:
    """`attend` as the op of a dense call: the window, which hides nothing, and what changes speed only are ignored."""
    out, lse = attend(q, k, v, softmax_scale, causal)
    return out, lse, None, None
