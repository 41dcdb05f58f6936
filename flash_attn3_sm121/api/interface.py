"""The public functions, with upstream's names, order and defaults, and what they return.

`s_aux` (attention sinks) is ours: last, so that positional callers of upstream's signatures never meet it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flash_attn3_sm121.api.attend import (
    Window,
    attend,
    autocast,
    default_scale,
    is_autocast,
    is_plain,
    length_of,
    window_of,
)
from flash_attn3_sm121.api.eager import dense
from flash_attn3_sm121.api.kvcache import flash_attn_with_kvcache
from flash_attn3_sm121.api.private import _flash_attn_backward, _flash_attn_forward
from flash_attn3_sm121.call.arguments import ForwardArgs
from flash_attn3_sm121.dispatch.engine import engine
from flash_attn3_sm121.errors import CallError
from flash_attn3_sm121.native import library

__all__ = [
    "_flash_attn_backward",
    "_flash_attn_forward",
    "flash_attn_combine",
    "flash_attn_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "get_scheduler_metadata",
]


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: Window = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
    s_aux: Tensor | None = None,
) -> Any:
    """Attention over dense tensors: q (b, sq, h, d), k (b, sk, hk, d), v (b, sk, hk, dv) -> (b, sq, h, dv).

    With `return_attn_probs` (out, lse), lse (b, h, sq) in fp32. Its gradient is honoured, which upstream drops.
    """
    if is_autocast(q):
        q, k, v = autocast(q), autocast(k), autocast(v)
    left, right = window_of(window_size)
    short = None
    if (  # the plain call, whose Python cost shows: once settled for its class, straight to the op
        qv is None
        and q_descale is None
        and k_descale is None
        and v_descale is None
        and s_aux is None
        and is_plain(q)
        and isinstance(k, Tensor)
        and isinstance(v, Tensor)
    ):
        kind = (q.dtype, k.dtype, v.dtype, q.device, q.shape, k.shape, v.shape)
        short = (*kind, causal, left, right, attention_chunk, softcap, num_splits, pack_gqa)
        op = engine().short_way(short)
        if op and q.stride(-1) == 1 and k.stride(-1) == 1 and v.stride(-1) == 1:
            scale = q.size(-1) ** -0.5 if softmax_scale is None else softmax_scale
            call = (scale, causal, left, right, attention_chunk, softcap, True, None, num_splits, pack_gqa, sm_margin)
            try:
                out, lse = dense(q, k, v, op, (*call, deterministic))
            except RuntimeError as error:
                if not library.is_unreadable(error):
                    raise  # else the long way knows who can read them
            else:
                return (out, lse.contiguous()) if return_attn_probs else out
    args = ForwardArgs(
        q=q,
        k=k,
        v=v,
        qv=qv,
        q_descale=q_descale,
        k_descale=k_descale,
        v_descale=v_descale,
        s_aux=s_aux,
        softmax_scale=default_scale(q, qv) if softmax_scale is None else softmax_scale,
        causal=causal,
        window_left=left,
        window_right=right,
        attention_chunk=attention_chunk,
        softcap=softcap,
        num_splits=num_splits,
        pack_gqa=pack_gqa,
        sm_margin=sm_margin,
    )
    out, lse, _, _ = attend(args, deterministic=deterministic)
    if short is not None:
        args.window_left, args.window_right = left, right  # a backend may have normalised them
        engine().settle_short_way(short, args)
    return (out, lse) if return_attn_probs else out


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int | Tensor | None,
    max_seqlen_k: int | Tensor | None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: Window = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
    s_aux: Tensor | None = None,
) -> Any:
    """Attention over packed sequences: q (total_q, h, d), k and v (total_k, hk, d | dv), lengths in cu_seqlens_*.

    With `return_attn_probs` (out, lse), lse (h, total_q). The max_seqlen_* are upper bounds and may be 0-d tensors.
    """
    if is_autocast(q):
        q, k, v = autocast(q), autocast(k), autocast(v)
    left, right = window_of(window_size)
    args = ForwardArgs(
        q=q,
        k=k,
        v=v,
        qv=qv,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        seqused_q=seqused_q,
        seqused_k=seqused_k,
        max_seqlen_q=length_of(max_seqlen_q, q),
        max_seqlen_k=length_of(max_seqlen_k, k),
        q_descale=q_descale,
        k_descale=k_descale,
        v_descale=v_descale,
        s_aux=s_aux,
        softmax_scale=default_scale(q, qv) if softmax_scale is None else softmax_scale,
        causal=causal,
        window_left=left,
        window_right=right,
        attention_chunk=attention_chunk,
        softcap=softcap,
        num_splits=num_splits,
        pack_gqa=pack_gqa,
        sm_margin=sm_margin,
    )
    out, lse, _, _ = attend(args, deterministic=deterministic)
    return (out, lse) if return_attn_probs else out


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: Window = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    deterministic: bool = False,
    num_heads_q: int | None = None,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Any:
    """Attention over one tensor: (b, s, 3, h, d), or (b, s, hq + 2 hk, d) with `num_heads_q`."""
    if qkv.dim() == 5:
        if qkv.shape[2] != 3:
            raise CallError(f"qkv must have shape (batch_size, seqlen, 3, nheads, headdim), found {tuple(qkv.shape)}")
        q, k, v = qkv.unbind(dim=2)
    else:
        if qkv.dim() != 4 or num_heads_q is None:
            raise CallError(
                f"qkv must have shape (b, s, 3, h, d), or (b, s, hq + 2 * hk, d) with num_heads_q; found "
                f"{tuple(qkv.shape)} and num_heads_q={num_heads_q}"
            )
        heads_kv, odd = divmod(qkv.shape[2] - num_heads_q, 2)
        if odd or heads_kv < 1:
            raise CallError(f"qkv holds {qkv.shape[2]} heads, which is not num_heads_q ({num_heads_q}) + 2 * heads_kv")
        q, k, v = torch.split(qkv, [num_heads_q, heads_kv, heads_kv], dim=2)
    return flash_attn_func(
        q,
        k,
        v,
        softmax_scale=softmax_scale,
        causal=causal,
        q_descale=q_descale,
        k_descale=k_descale,
        v_descale=v_descale,
        window_size=window_size,
        attention_chunk=attention_chunk,
        softcap=softcap,
        deterministic=deterministic,
        sm_margin=sm_margin,
        return_attn_probs=return_attn_probs,
    )


def flash_attn_combine(
    out_partial: Tensor, lse_partial: Tensor, out: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Merge partial results: (S, b, s, h, d) and (S, b, s, h), both fp32 -> (b, s, h, d) and (b, s, h)."""
    if out is None and not is_plain(out_partial):
        merged, lse = torch.ops.flash_attn3_sm121.combine(out_partial, lse_partial, out_dtype)
        return merged, lse
    return engine().combine(out_partial, lse_partial, out, out_dtype)


def get_scheduler_metadata(
    batch_size: int,
    max_seqlen_q: int | Tensor,
    max_seqlen_k: int | Tensor,
    num_heads_q: int,
    num_heads_kv: int,
    headdim: int,
    cache_seqlens: Tensor,
    qkv_dtype: torch.dtype = torch.bfloat16,
    headdim_v: int | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_size: int | None = None,
    max_seqlen_k_new: int = 0,
    causal: bool = False,
    window_size: Window = (-1, -1),
    attention_chunk: int = 0,
    has_softcap: bool = False,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
) -> Tensor:
    """An opaque int32 vector for `flash_attn_with_kvcache(scheduler_metadata=...)`; it may be used again."""
    left, right = window_of(window_size)
    call = (
        *(batch_size, int(max_seqlen_q), int(max_seqlen_k), num_heads_q, num_heads_kv, headdim),
        *(headdim if headdim_v is None else headdim_v, qkv_dtype, cache_seqlens.contiguous()),
        *(cu_seqlens_q, None, cu_seqlens_k_new, None, cache_leftpad, page_size, max_seqlen_k_new),
        *(causal, left, right, attention_chunk, has_softcap, num_splits, pack_gqa, sm_margin),
    )
    if is_plain(cache_seqlens):
        return engine().scheduler_metadata(call)
    metadata: Tensor = torch.ops.flash_attn_3.get_scheduler_metadata(*call)
    return metadata
