"""The interface of `kernels-community/vllm-flash-attn3`: upstream's of its time, with sinks and context parallelism.

`flash_attn_func` and `flash_attn_varlen_func` always return (out, lse). vLLM's own wrapper (0.33) has more arguments,
all of which `flash_attn_varlen_func` takes by name; a call that says `fa_version`, `out` or `return_softmax_lse`, as
only vLLM does, gets what vLLM's wrapper returns. Context parallelism (`cp_*`), alibi, dropout and the features of
FlashAttention-4 are not supported here: asking for them raises, because ignoring them would give wrong numbers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flash_attn3_sm121.api import interface
from flash_attn3_sm121.api.attend import Window, attend_into, length_of, no_tensor, scale_of, window_of
from flash_attn3_sm121.api.interface import flash_attn_combine, get_scheduler_metadata
from flash_attn3_sm121.call.arguments import ForwardArgs
from flash_attn3_sm121.errors import CallError

__all__ = [
    "flash_attn_combine",
    "flash_attn_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "get_scheduler_metadata",
]


def _refuse(**given: tuple[Any, Any]) -> None:
    """Raise CallError for the first argument that is set: name=(its value, the value that means unset)."""
    for name, (found, nothing) in given.items():
        if found is not nothing and (isinstance(found, Tensor) or found != nothing):
            value = "a tensor" if isinstance(found, Tensor) else repr(found)
            raise CallError(f"{name} is not supported here: found {value}, expected {nothing!r}")


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
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention over dense tensors -> (out, lse (b, h, sq) in fp32).

    `dropout_p` is there because `flash_attn_varlen_func` has it: transformers asks that one what both functions take.
    """
    _refuse_context_parallel(cp_world_size, cp_rank, cp_tot_seqused_k)
    _refuse(dropout_p=(dropout_p, 0.0))
    out, lse = interface.flash_attn_func(
        q, k, v, softmax_scale=softmax_scale, causal=causal, qv=qv, q_descale=q_descale, k_descale=k_descale,
        v_descale=v_descale, window_size=window_size, attention_chunk=attention_chunk, softcap=softcap,
        num_splits=num_splits, pack_gqa=pack_gqa, deterministic=deterministic, sm_margin=sm_margin,
        return_attn_probs=True, s_aux=s_aux,
    )  # fmt: skip
    return out, lse


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | Tensor | None = None,
    max_seqlen_k: int | Tensor | None = None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: Window | None = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    s_aux: Tensor | None = None,
    cp_world_size: int = 1,
    cp_rank: int = 0,
    cp_tot_seqused_k: Tensor | None = None,
    q_v: Tensor | None = None,
    dropout_p: float = 0.0,
    alibi_slopes: Tensor | None = None,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
    return_softmax_lse: bool | None = None,
    out: Tensor | None = None,
    scheduler_metadata: Tensor | None = None,
    output_scale: Any = None,
    fa_version: int | None = None,
    mask_mod: Any = None,
    block_sparse_tensors: Any = None,
    aux_tensors: Any = None,
    aux_tensor_leading_dims: Any = None,
    dynamic_causal: Tensor | None = None,
    gather_kv_indices: Tensor | None = None,
    gather_kv_valid_length: Tensor | None = None,
) -> Any:
    """Attention over packed queries and over keys that are packed or lie in the pages of a cache.

    Args: as of upstream's function, and by vLLM's names: `q_v` is qv, `block_table` the page table of a cache whose
    lengths are `seqused_k`, `out` where the result goes, `fa_version` any number.

    Returns:
        (out, lse (h, total_q) in fp32); for a call of vLLM's, out alone unless it asks for the lse.

    Raises:
        CallError: something is asked for that is not supported here.
    """
    _refuse_context_parallel(cp_world_size, cp_rank, cp_tot_seqused_k)
    _refuse(
        dropout_p=(dropout_p, 0.0),
        alibi_slopes=(alibi_slopes, None),
        output_scale=(output_scale, None),
        mask_mod=(mask_mod, None),
        block_sparse_tensors=(block_sparse_tensors, None),
        aux_tensors=(aux_tensors, None),
        aux_tensor_leading_dims=(aux_tensor_leading_dims, None),
        dynamic_causal=(dynamic_causal, None),
        gather_kv_indices=(gather_kv_indices, None),
        gather_kv_valid_length=(gather_kv_valid_length, None),
    )
    if not (isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)):
        raise no_tensor(q=q, k=k, v=v)
    left, right = window_of((-1, -1) if window_size is None else window_size)
    qv = q_v if qv is None else qv
    args = ForwardArgs(
        q=q,
        k=k,
        v=v,
        qv=qv,
        out=out,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        seqused_q=seqused_q,
        seqused_k=seqused_k,
        max_seqlen_q=length_of(max_seqlen_q, q),
        max_seqlen_k=length_of(max_seqlen_k, k),
        page_table=block_table,
        q_descale=q_descale,
        k_descale=k_descale,
        v_descale=v_descale,
        s_aux=s_aux,
        softmax_scale=scale_of(q, None if q_v is not None else qv, softmax_scale),  # vLLM does not count q_v in
        causal=causal,
        window_left=left,
        window_right=right,
        attention_chunk=attention_chunk,
        softcap=softcap,
        scheduler_metadata=scheduler_metadata,
        num_splits=num_splits,
        pack_gqa=pack_gqa,
        sm_margin=sm_margin,
    )
    result, lse = attend_into(args, deterministic=deterministic)
    vllms = fa_version is not None or out is not None or return_softmax_lse is not None
    return result if vllms and not (return_softmax_lse or return_attn_probs) else (result, lse)


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
