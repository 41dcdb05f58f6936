"""The interface of `kernels-community/vllm-flash-attn3`: upstream's of its time, with sinks and context parallelism.

`flash_attn_func` and `flash_attn_varlen_func` always return (out, lse). Context parallelism (`cp_*`) is not supported
here: asking for it raises, because ignoring it would give wrong numbers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flash_attn3_sm121.api import interface
from flash_attn3_sm121.api.attend import Window
from flash_attn3_sm121.api.interface import flash_attn_combine, get_scheduler_metadata
from flash_attn3_sm121.errors import CallError

__all__ = [
    "flash_attn_combine",
    "flash_attn_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "get_scheduler_metadata",
]


def _refuse_context_parallel(cp_world_size: int, cp_rank: int, cp_tot_seqused_k: Tensor | None) -> None:
    if cp_world_size != 1 or cp_rank != 0 or cp_tot_seqused_k is not None:
        raise CallError(
            f"context parallelism is not supported: cp_world_size={cp_world_size}, cp_rank={cp_rank}, cp_tot_seqused_k "
            f"{'given' if cp_tot_seqused_k is not None else 'not given'}; expected 1, 0 and none"
        )


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None = None, causal: bool = False,
    qv: Tensor | None = None, q_descale: Tensor | None = None, k_descale: Tensor | None = None,
    v_descale: Tensor | None = None, window_size: Window = (-1, -1), attention_chunk: int = 0, softcap: float = 0.0,
    num_splits: int = 1, pack_gqa: bool | None = None, deterministic: bool = False, sm_margin: int = 0,
    s_aux: Tensor | None = None, cp_world_size: int = 1, cp_rank: int = 0, cp_tot_seqused_k: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention over dense tensors -> (out, lse (b, h, sq) in fp32)."""
    _refuse_context_parallel(cp_world_size, cp_rank, cp_tot_seqused_k)
    out, lse = interface.flash_attn_func(
        q, k, v, softmax_scale=softmax_scale, causal=causal, qv=qv, q_descale=q_descale, k_descale=k_descale,
        v_descale=v_descale, window_size=window_size, attention_chunk=attention_chunk, softcap=softcap,
        num_splits=num_splits, pack_gqa=pack_gqa, deterministic=deterministic, sm_margin=sm_margin,
        return_attn_probs=True, s_aux=s_aux,
    )  # fmt: skip
    return out, lse


def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int | Tensor,
    max_seqlen_k: int | Tensor, seqused_q: Tensor | None = None, seqused_k: Tensor | None = None,
    softmax_scale: float | None = None, causal: bool = False, qv: Tensor | None = None,
    q_descale: Tensor | None = None, k_descale: Tensor | None = None, v_descale: Tensor | None = None,
    window_size: Window = (-1, -1), attention_chunk: int = 0, softcap: float = 0.0, num_splits: int = 1,
    pack_gqa: bool | None = None, deterministic: bool = False, sm_margin: int = 0, s_aux: Tensor | None = None,
    cp_world_size: int = 1, cp_rank: int = 0, cp_tot_seqused_k: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention over packed sequences -> (out, lse (h, total_q) in fp32)."""
    _refuse_context_parallel(cp_world_size, cp_rank, cp_tot_seqused_k)
    out, lse = interface.flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=seqused_q, seqused_k=seqused_k,
        softmax_scale=softmax_scale, causal=causal, qv=qv, q_descale=q_descale, k_descale=k_descale,
        v_descale=v_descale, window_size=window_size, attention_chunk=attention_chunk, softcap=softcap,
        num_splits=num_splits, pack_gqa=pack_gqa, deterministic=deterministic, sm_margin=sm_margin,
        return_attn_probs=True, s_aux=s_aux,
    )  # fmt: skip
    return out, lse


def flash_attn_with_kvcache(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None = None, v: Tensor | None = None,
    qv: Tensor | None = None, rotary_cos: Tensor | None = None, rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None, cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None, page_table: Tensor | None = None, cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None, max_seqlen_q: int | Tensor | None = None,
    rotary_seqlens: Tensor | None = None, q_descale: Tensor | None = None, k_descale: Tensor | None = None,
    v_descale: Tensor | None = None, softmax_scale: float | None = None, causal: bool = False,
    window_size: Window = (-1, -1), attention_chunk: int = 0, softcap: float = 0.0, rotary_interleaved: bool = True,
    scheduler_metadata: Tensor | None = None, num_splits: int = 0, pack_gqa: bool | None = None, sm_margin: int = 0,
    return_softmax_lse: bool = False, s_aux: Tensor | None = None, cp_world_size: int = 1, cp_rank: int = 0,
    cp_tot_seqused_k: Tensor | None = None,
) -> Any:  # fmt: skip
    """Attention over a KV cache; with `return_softmax_lse` the 4-tuple of upstream, else out."""
    _refuse_context_parallel(cp_world_size, cp_rank, cp_tot_seqused_k)
    return interface.flash_attn_with_kvcache(
        q, k_cache, v_cache, k=k, v=v, qv=qv, rotary_cos=rotary_cos, rotary_sin=rotary_sin,
        cache_seqlens=cache_seqlens, cache_batch_idx=cache_batch_idx, cache_leftpad=cache_leftpad,
        page_table=page_table, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k_new=cu_seqlens_k_new,
        max_seqlen_q=max_seqlen_q, rotary_seqlens=rotary_seqlens, q_descale=q_descale, k_descale=k_descale,
        v_descale=v_descale, softmax_scale=softmax_scale, causal=causal, window_size=window_size,
        attention_chunk=attention_chunk, softcap=softcap, rotary_interleaved=rotary_interleaved,
        scheduler_metadata=scheduler_metadata, num_splits=num_splits, pack_gqa=pack_gqa, sm_margin=sm_margin,
        return_softmax_lse=return_softmax_lse, s_aux=s_aux,
    )  # fmt: skip
