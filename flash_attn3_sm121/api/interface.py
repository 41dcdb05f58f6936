"""The public functions, with upstream's names, argument order, defaults and results.

`s_aux` (attention sinks) is an addition. It stands last, so that no positional call by upstream's signature meets it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flash_attn3_sm121.api import custom_ops, fast, ops
from flash_attn3_sm121.api.attend import (
    Window,
    attend,
    autocast,
    is_autocast,
    is_plain,
    length_of,
    no_tensor,
    scale_of,
    window_of,
)
from flash_attn3_sm121.api.kvcache import flash_attn_with_kvcache
from flash_attn3_sm121.api.private import _flash_attn_backward, _flash_attn_forward
from flash_attn3_sm121.call import schemas
from flash_attn3_sm121.call.arguments import ForwardArgs
from flash_attn3_sm121.dispatch.engine import engine
from flash_attn3_sm121.errors import CallError

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

custom_ops.register()


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
    """Attention over dense tensors, differentiable in q, k, v and s_aux.

    Args:
        q: (b, sq, h, d) queries in fp16, bf16, fp32 or fp8 (e4m3). All three tensors have one dtype, but for k and v in
            fp8, which go with fp16 and bf16 queries too.
        k, v: (b, sk, hk, d) keys and (b, sk, hk, dv) values. hk divides h; each key head serves h / hk query heads.
        softmax_scale: what scores are multiplied by; None: one over the root of d.
        causal: whether a row sees no key behind its own position; the last row stands at the last key.
        qv: a second query (b, sq, h, dv), whose products with v are added to the scores; forward only.
        q_descale, k_descale, v_descale: (b, hk) fp32 scales of fp8 tensors, k's and v's together; None: 1. They are
            ignored for other dtypes.
        window_size: (left, right), how many keys before and behind its position a row sees; -1 or None: unlimited.
        attention_chunk: if not 0, a row sees keys of its own chunk of that many positions only.
        softcap: if not 0, scores become softcap * tanh(scores / softcap).
        num_splits, pack_gqa, sm_margin: how kernels divide the work. The result does not depend on them.
        deterministic: whether the backward must give the same bits each time.
        return_attn_probs: whether the log-sum-exp of the scores is returned too.
        s_aux: (h,) attention sinks, one more score that every row of a head sees; differentiable.

    Returns:
        out (b, sq, h, dv) in q's dtype (bf16 for fp8), or (out, lse) with lse (b, h, sq) in fp32. The gradient of the
        lse is honoured, which upstream drops. A row that sees no key gets 0 and -inf.

    Raises:
        CallError: the arguments do not fit together. It is a RuntimeError, as upstream's is, and a ValueError.
        TypeError: q, k or v is no tensor.
        BackendError: a backend was forced (`use_backend`) that cannot serve the call.
    """
    if not (isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)):
        raise no_tensor(q=q, k=k, v=v)
    if is_autocast(q):
        q, k, v, qv = autocast(q), autocast(k), autocast(v), autocast(qv)
    left, right = window_of(window_size)
    if (
        qv is None
        and q_descale is None
        and k_descale is None
        and v_descale is None
        and s_aux is None
        and (softmax_scale is None or (isinstance(softmax_scale, float) and softmax_scale > 0))
        and is_plain(q)
    ):
        scalars = (causal, left, right, attention_chunk, softcap, num_splits, pack_gqa)
        results = fast.dense(q, k, v, softmax_scale, scalars, sm_margin, deterministic)
        if results is not None:
            out, lse = results
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
        softmax_scale=scale_of(q, qv, softmax_scale),
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
    """Attention over sequences of different lengths, packed one behind the other; differentiable as flash_attn_func.

    Args:
        q: (total_q, h, d) queries, or (b, sq, h, d) where cu_seqlens_q is None.
        k, v: (total_k, hk, d) keys and (total_k, hk, dv) values, or dense ones where cu_seqlens_k is None.
        cu_seqlens_q, cu_seqlens_k: (b + 1,) int32, where each sequence starts; the first is 0, the last the total.
        max_seqlen_q, max_seqlen_k: upper bounds of the lengths, as numbers or 0-d tensors.
        seqused_q, seqused_k: (b,) int32, how many rows and keys of each sequence are in use; None: all.
        softmax_scale: what scores are multiplied by; None: one over the root of d.
        causal: whether a row sees no key behind its own position; the last row stands at the last key.
        qv: a second query (total_q, h, dv), whose products with v are added to the scores; forward only.
        q_descale, k_descale, v_descale: (b, hk) fp32 scales of fp8 tensors, k's and v's together; None: 1. They are
            ignored for other dtypes.
        window_size: (left, right), how many keys before and behind its position a row sees; -1 or None: unlimited.
        attention_chunk: if not 0, a row sees keys of its own chunk of that many positions only.
        softcap: if not 0, scores become softcap * tanh(scores / softcap).
        num_splits, pack_gqa, sm_margin: how kernels divide the work. The result does not depend on them.
        deterministic: whether the backward must give the same bits each time.
        return_attn_probs: whether the log-sum-exp of the scores is returned too.
        s_aux: (h,) attention sinks, one more score that every row of a head sees; differentiable.

    Returns:
        out (total_q, h, dv), or (out, lse) with lse (h, total_q) in fp32. Rows past seqused_q get 0 and -inf.

    Raises:
        CallError, TypeError, BackendError: as flash_attn_func.
    """
    if not (isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)):
        raise no_tensor(q=q, k=k, v=v)
    if is_autocast(q):
        q, k, v, qv = autocast(q), autocast(k), autocast(v), autocast(qv)
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
        softmax_scale=scale_of(q, qv, softmax_scale),
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


def split_qkv(qkv: Tensor, num_heads_q: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """(q, k, v) out of the one tensor that `flash_attn_qkvpacked_func` takes."""
    if not isinstance(qkv, Tensor):
        raise no_tensor(qkv=qkv)
    if qkv.dim() == 5:
        if qkv.shape[2] != 3:
            raise CallError(f"qkv must have shape (batch_size, seqlen, 3, nheads, headdim), found {tuple(qkv.shape)}")
        q, k, v = qkv.unbind(dim=2)
        return q, k, v
    if qkv.dim() != 4 or num_heads_q is None:
        raise CallError(
            f"qkv must have shape (b, s, 3, h, d), or (b, s, hq + 2 * hk, d) with num_heads_q; found "
            f"{tuple(qkv.shape)} and num_heads_q={num_heads_q}"
        )
    heads_kv, odd = divmod(qkv.shape[2] - num_heads_q, 2)
    if odd or heads_kv < 1 or num_heads_q < 0:
        raise CallError(f"qkv holds {qkv.shape[2]} heads, which is not num_heads_q ({num_heads_q}) + 2 * heads_kv")
    q, k, v = torch.split(qkv, [num_heads_q, heads_kv, heads_kv], dim=2)
    return q, k, v


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
    """`flash_attn_func` over queries, keys and values that lie in one tensor.

    Args:
        qkv: (b, s, 3, h, d), or with `num_heads_q` (b, s, num_heads_q + 2 * hk, d): first the queries' heads, then the
            keys', then the values'.
        num_heads_q: how many of the heads are queries'; None for the first form.

    The other arguments, the result and what is raised are those of `flash_attn_func`.
    """
    q, k, v = split_qkv(qkv, num_heads_q)
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
    """Merge attention over S parts of the keys into attention over all of them.

    Args:
        out_partial: (S, b, s, h, d) in fp32, S at most 256. A part whose lse is -inf counts for nothing.
        lse_partial: (S, b, s, h) in fp32.
        out: where the result goes, if given.
        out_dtype: the dtype of the result; None: fp32.

    Returns:
        out (b, s, h, d) and lse (b, s, h).

    Raises:
        CallError: shapes, dtypes or devices do not fit together.
    """
    if not (isinstance(out_partial, Tensor) and isinstance(lse_partial, Tensor)):
        raise no_tensor(out_partial=out_partial, lse_partial=lse_partial)
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
    """Plan a `flash_attn_with_kvcache` call ahead.

    The arguments describe that call, `qkv_dtype` its K and V, and `max_seqlen_k` the capacity of its cache. The result
    holds for every call that they describe, layer after layer. Any other call plans for itself.

    Returns:
        An opaque int32 vector for its `scheduler_metadata`.
    """
    if not isinstance(cache_seqlens, Tensor):
        raise no_tensor(cache_seqlens=cache_seqlens)
    left, right = window_of(window_size)
    call = {
        **ops.METADATA_DEFAULTS,
        "batch_size": batch_size,
        "max_seqlen_q": int(max_seqlen_q),
        "max_seqlen_k": int(max_seqlen_k),
        "num_heads": num_heads_q,
        "num_heads_k": num_heads_kv,
        "headdim": headdim,
        "headdim_v": headdim if headdim_v is None else headdim_v,
        "qkv_dtype": qkv_dtype,
        "seqused_k": cache_seqlens.contiguous(),
        "cu_seqlens_q": cu_seqlens_q,
        "cu_seqlens_k_new": cu_seqlens_k_new,
        "leftpad_k": cache_leftpad,
        "page_size": page_size,
        "max_seqlen_k_new": max_seqlen_k_new,
        "is_causal": causal,
        "window_size_left": left,
        "window_size_right": right,
        "attention_chunk": attention_chunk,
        "has_softcap": has_softcap,
        "num_splits": num_splits,
        "pack_gqa": pack_gqa,
        "sm_margin": sm_margin,
    }
    values = tuple(call[name] for name in schemas.METADATA_NAMES)
    if is_plain(cache_seqlens):
        return engine().scheduler_metadata(values)
    metadata: Tensor = torch.ops.flash_attn_3.get_scheduler_metadata(*values)
    return metadata
