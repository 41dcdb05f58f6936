"""The shortest way on a CPU: a dense call that one kernel call answers, without a plan.

Plain causal attention over a square, or no mask at all, is where nothing is to be won over torch's kernel and only the
way there can be lost: a few dozen microseconds of Python, several times that after a kernel that emptied the caches.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor

from flash_attn3_sm121.call import ForwardArgs
from flash_attn3_sm121.fallback import cpu_kernel, kernels
from flash_attn3_sm121.fallback.blocked import Scoring
from flash_attn3_sm121.fallback.decode import FOLDED_ROWS

# Fetched in C, in one go: this runs on every call.
_EXTRAS = operator.attrgetter(
    *("k_new", "v_new", "qv", "out", "cu_seqlens_q", "cu_seqlens_k", "cu_seqlens_k_new", "seqused_q", "seqused_k"),
    *("page_table", "kv_batch_idx", "leftpad_k", "rotary_cos", "rotary_sin", "seqlens_rotary", "s_aux"),
)
_NONE = (None,) * 16


def _is_whole(args: ForwardArgs) -> bool:
    q, k, v = args.q, args.k, args.v
    if args.window_left >= 0 or args.attention_chunk > 0 or _EXTRAS(args) != _NONE:
        return False
    if args.causal:
        fits = q.shape[1] == k.shape[1] > 1
    else:
        fits = args.window_right < 0 and q.shape[1] * q.shape[2] > FOLDED_ROWS * k.shape[2]
    alike = q.dtype == k.dtype == v.dtype and q.dtype in cpu_kernel.TYPES and q.shape[-1] == v.shape[-1]
    return fits and alike and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1 and q.numel() > 0 < k.numel()


def forward(args: ForwardArgs) -> tuple[Tensor, Tensor] | None:
    """(out, lse) as from `host.forward`, or None: the call is of another kind."""
    if args.q.device.type != "cpu" or not _is_whole(args) or torch.is_autocast_enabled("cpu"):
        return None
    q, k, v = args.q, args.k, args.v
    kernel = kernels.pick(q, k, v, None, Scoring(scale=args.softmax_scale, softcap=args.softcap))
    if kernel is None:
        return None
    with torch.no_grad():
        out, lse = kernel.forward(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=args.softmax_scale, causal=args.causal
        )
        return out.transpose(1, 2).contiguous(), lse.to(torch.float32).contiguous()
