"""The interface of `kernels-community/sgl-flash-attn3`, which SGLang asks for: upstream's, forward only.

Beside upstream's arguments there are `sinks`, `page_table` for packed queries, `out`, and `only_qv`: the scores are the
products of qv and the values alone, and the keys may be None.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flash_attn3_sm121.api import interface, ops
from flash_attn3_sm121.api.attend import Window, attend_into, length_of, scale_of, window_of
from flash_attn3_sm121.api.interface import flash_attn_combine, get_scheduler_metadata
from flash_attn3_sm121.call.arguments import ForwardArgs
from flash_attn3_sm121.errors import CallError

__all__ = [
    "flash_attn_combine",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "get_scheduler_metadata",
]


def _scores_of_qv(
    qv: Tensor | None, values: Tensor, softmax_scale: float | None, new: Tensor | None
) -> tuple[Tensor, Tensor, None]:
    """(q, k, qv) of the call that has the same scores as one with `only_qv`."""
    if qv is None or softmax_scale is None or new is not None:
        raise CallError(
            f"only_qv: needs qv and softmax_scale and no new keys, found qv {'not ' if qv is None else ''}given, "
            f"softmax_scale={softmax_scale}, new keys {'not ' if new is None else ''}given"
        )
    return qv, values, None


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int | Tensor | None = None,
    max_seqlen_k: int | Tensor | None = None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    page_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: Window = (-1, -1),
    attention_chunk: int | None = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
    sinks: Tensor | None = None,
    only_qv: bool = False,
    out: Tensor | None = None,
) -> Any:
    """Attention over packed queries -> out, or with `return_softmax_lse` upstream's four tensors."""
    if only_qv:
        q, k, qv = _scores_of_qv(qv, v, softmax_scale, None)
        k_descale = v_descale
    left, right = window_of(window_size)
    args = ForwardArgs(
        q=q,
        k=k,  # type: ignore[arg-type]  # validation says that it is missing
        v=v,
        qv=qv,
        out=out,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        seqused_q=seqused_q,
        seqused_k=seqused_k,
        max_seqlen_q=length_of(max_seqlen_q, q),
        max_seqlen_k=length_of(max_seqlen_k, v),
        page_table=page_table,
        q_descale=q_descale,
        k_descale=k_descale,
        v_descale=v_descale,
        s_aux=sinks,
        softmax_scale=scale_of(q, qv, softmax_scale),
        causal=causal,
        window_left=left,
        window_right=right,
        attention_chunk=attention_chunk or 0,
        softcap=softcap,
        num_splits=num_splits,
        pack_gqa=pack_gqa,
        sm_margin=sm_margin,
    )
    result, lse = attend_into(args)
    return (result, lse, *ops.no_accumulators(result)) if return_softmax_lse else result


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor | None,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    qv: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    max_seqlen_q: int | Tensor | None = None,
    rotary_seqlens: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    attention_chunk: int | None = None,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Tensor | None = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
    sinks: Tensor | None = None,
    only_qv: bool = False,
    out: Tensor | None = None,
) -> Any:
    """Attention over a KV cache -> out, or with `return_softmax_lse` upstream's four tensors."""
    if only_qv:
        q, k_cache, qv = _scores_of_qv(qv, v_cache, softmax_scale, k)
        k_descale = v_descale
    result = interface.flash_attn_with_kvcache(
        q,
        k_cache,  # type: ignore[arg-type]  # validation says that it is missing
        v_cache,
        k=k,
        v=v,
        qv=qv,
        rotary_cos=rotary_cos,
        rotary_sin=rotary_sin,
        cache_seqlens=cache_seqlens,
        cache_batch_idx=cache_batch_idx,
        cache_leftpad=cache_leftpad,
        page_table=page_table,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k_new=cu_seqlens_k_new,
        max_seqlen_q=max_seqlen_q,
        rotary_seqlens=rotary_seqlens,
        q_descale=q_descale,
        k_descale=k_descale,
        v_descale=v_descale,
        softmax_scale=softmax_scale,
        causal=causal,
        window_size=window_size,
        attention_chunk=attention_chunk or 0,
        softcap=softcap,
        rotary_interleaved=rotary_interleaved,
        scheduler_metadata=scheduler_metadata,
        num_splits=num_splits,
        pack_gqa=pack_gqa,
        sm_margin=sm_margin,
        return_softmax_lse=return_softmax_lse,
        s_aux=sinks,
    )
    if out is None:
        return result
    out.copy_(result[0] if return_softmax_lse else result)
    return (out, *result[1:]) if return_softmax_lse else out
