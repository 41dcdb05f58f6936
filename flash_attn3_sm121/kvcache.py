"""Attention over a KV cache, with new keys and values written into it in place. Not differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flash_attn3_sm121 import ops
from flash_attn3_sm121.attend import Window, attend, autocast, is_plain, length_of, window_of
from flash_attn3_sm121.call import ForwardArgs
from flash_attn3_sm121.engine import engine
from flash_attn3_sm121.errors import CallError


def _lengths(cache_seqlens: int | Tensor | None, rows: int, k_cache: Tensor) -> Tensor | None:
    if cache_seqlens is None or isinstance(cache_seqlens, Tensor):
        return cache_seqlens
    if cache_seqlens < 0:
        raise CallError(f"cache_seqlens must not be negative, found {cache_seqlens}")
    return torch.full((rows,), cache_seqlens, dtype=torch.int32, device=k_cache.device)


def _check_room(cache_seqlens: int | Tensor | None, k: Tensor | None, k_cache: Tensor) -> None:
    """Where every row's length is one known number, an overflow is seen without looking at any device."""
    if (
        isinstance(cache_seqlens, int)
        and k is not None
        and k.dim() == 4
        and cache_seqlens + k.shape[1] > k_cache.shape[1]
    ):
        raise CallError(
            f"KV cache overflow: {cache_seqlens} + {k.shape[1]} new keys and a capacity of {k_cache.shape[1]}"
        )


def _append(given: dict[str, Any]) -> tuple[Tensor, ...]:
    """Write, then attend: through the engine, or through the op that says what it mutates."""
    if is_plain(given["q"]):
        out, lse, out_accum, lse_accum = engine().forward(ForwardArgs(**given))
        if out_accum is not None and lse_accum is not None:
            return out, lse, out_accum, lse_accum
    else:
        out, lse = torch.ops.flash_attn3_sm121.append(*[given[name] for name in ops.APPEND_FIELDS])
    return (out, lse, *ops.no_accumulators(out))


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
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
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Tensor | None = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
    s_aux: Tensor | None = None,
) -> Any:
    """q (b, sq, h, d) against a cache (b_cache, capacity, hk, d | dv), or (pages, page_size, hk, .) with page_table.

    New k and v are written at `cache_seqlens[b]...` before anything is read. `cache_seqlens` may differ per row; an
    int means every row, None the whole cache. With `return_softmax_lse` the 4-tuple (out, lse, out_accum, lse_accum).
    """
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if cache.stride(-1) != 1:
            raise CallError(f"{name} must have contiguous last dimension")
    (q,) = autocast(q)
    rows = q.shape[0] if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
    if softmax_scale is None:
        softmax_scale = (q.shape[-1] + (0 if qv is None else qv.shape[-1])) ** -0.5
    left, right = window_of(window_size)
    if page_table is None:
        _check_room(cache_seqlens, k, k_cache)
    shared: dict[str, Any] = {
        "qv": qv,
        "cu_seqlens_q": cu_seqlens_q,
        "seqused_k": _lengths(cache_seqlens, rows, k_cache),
        "max_seqlen_q": length_of(max_seqlen_q, q),
        "page_table": page_table,
        "kv_batch_idx": cache_batch_idx,
        "leftpad_k": cache_leftpad,
        "q_descale": q_descale,
        "k_descale": k_descale,
        "v_descale": v_descale,
        "s_aux": s_aux,
        "softmax_scale": softmax_scale,
        "causal": causal,
        "attention_chunk": attention_chunk,
        "softcap": softcap,
        "scheduler_metadata": scheduler_metadata,
        "num_splits": num_splits,
        "pack_gqa": pack_gqa,
        "sm_margin": sm_margin,
    }
    with torch.no_grad():
        if k is None and v is None and rotary_cos is None and rotary_sin is None:
            out, lse, *rest = attend(q, k_cache, v_cache, window_size=(left, right), **shared)
            rest = [*ops.no_accumulators(out)] if rest[0] is None else rest
            return (out, lse, *rest) if return_softmax_lse else out
        appended = {
            "q": q,
            "k": k_cache,
            "v": v_cache,
            "k_new": k,
            "v_new": v,
            "cu_seqlens_k_new": cu_seqlens_k_new,
            "rotary_cos": rotary_cos,
            "rotary_sin": rotary_sin,
            "seqlens_rotary": rotary_seqlens,
            "rotary_interleaved": rotary_interleaved,
            "window_left": left,
            "window_right": right,
            **shared,
        }
        results = _append(appended)
    return results if return_softmax_lse else results[0]
