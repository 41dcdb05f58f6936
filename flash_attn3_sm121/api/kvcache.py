"""Attention over a KV cache, with new keys and values written into it in place. Not differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flash_attn3_sm121.api import ops
from flash_attn3_sm121.api.attend import (
    Window,
    autocast,
    default_scale,
    functional,
    is_autocast,
    is_plain,
    length_of,
    window_of,
)
from flash_attn3_sm121.call.arguments import ForwardArgs
from flash_attn3_sm121.dispatch.engine import engine
from flash_attn3_sm121.errors import CallError
from flash_attn3_sm121.native import library


def _full(cache_seqlens: int, rows: int, k_cache: Tensor) -> Tensor:
    if cache_seqlens < 0:
        raise CallError(f"cache_seqlens must not be negative, found {cache_seqlens}")
    return torch.full((rows,), cache_seqlens, dtype=torch.int32, device=k_cache.device)


def _check_room(cache_seqlens: int, k: Tensor | None, k_cache: Tensor) -> None:
    """Where every row's length is one known number, an overflow is seen without looking at any device."""
    if k is not None and k.dim() == 4 and cache_seqlens + k.shape[1] > k_cache.shape[1]:
        raise CallError(
            f"KV cache overflow: {cache_seqlens} + {k.shape[1]} new keys and a capacity of {k_cache.shape[1]}"
        )


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
    short = None
    if (  # plain decoding, the call whose Python cost shows: once settled, straight to the op
        qv is None
        and rotary_cos is None
        and rotary_sin is None
        and cache_leftpad is None
        and cu_seqlens_q is None
        and cu_seqlens_k_new is None
        and q_descale is None
        and k_descale is None
        and v_descale is None
        and s_aux is None
        and scheduler_metadata is None
        and type(cache_seqlens) is Tensor
        and is_plain(q)
    ):
        shape = (q.dtype, q.device, q.size(-1), v_cache.size(-1), k is None, v is None, page_table is None)
        short = (shape, cache_batch_idx is None, causal, *window_size, attention_chunk, softcap, num_splits, pack_gqa)
        serving = engine()
        op = serving.short_way(short)
        if op and q.stride(-1) == 1 and (k is None or k.stride(-1) == 1) and k_cache.dtype == q.dtype:
            if k is not None and serving.settings.check_cache:
                library.assert_room(k_cache, page_table, cache_seqlens, k.shape[1])
            try:
                results = op(
                    *(q, k_cache, v_cache, k, v, None, None, None, None, None, None, cache_seqlens, None, None),
                    *(page_table, cache_batch_idx, None, None, None, None, None, None, None),
                    *(q.size(-1) ** -0.5 if softmax_scale is None else softmax_scale, causal, *window_size),
                    *(attention_chunk, softcap, rotary_interleaved, None, num_splits, pack_gqa, sm_margin),
                )
            except RuntimeError as error:
                if not library.is_unreadable(error):
                    raise  # else the long way knows who can read them
            else:
                return results if return_softmax_lse else results[0]
    if k_cache.stride(-1) != 1 or v_cache.stride(-1) != 1:
        name = "k_cache" if k_cache.stride(-1) != 1 else "v_cache"
        raise CallError(f"{name} must have contiguous last dimension")
    if is_autocast(q):
        q, k, v = autocast(q), autocast(k), autocast(v)
    if isinstance(cache_seqlens, int):
        if page_table is None:
            _check_room(cache_seqlens, k, k_cache)
        rows = q.shape[0] if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
        cache_seqlens = _full(cache_seqlens, rows, k_cache)
    left, right = window_of(window_size)
    args = ForwardArgs(
        q=q,
        k=k_cache,
        v=v_cache,
        k_new=k,
        v_new=v,
        qv=qv,
        rotary_cos=rotary_cos,
        rotary_sin=rotary_sin,
        seqused_k=cache_seqlens,
        kv_batch_idx=cache_batch_idx,
        leftpad_k=cache_leftpad,
        page_table=page_table,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k_new=cu_seqlens_k_new,
        max_seqlen_q=length_of(max_seqlen_q, q),
        seqlens_rotary=rotary_seqlens,
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
        rotary_interleaved=rotary_interleaved,
        scheduler_metadata=scheduler_metadata,
        num_splits=num_splits,
        pack_gqa=pack_gqa,
        sm_margin=sm_margin,
    )
    if torch.is_grad_enabled():
        with torch.no_grad():
            results = _run(args)
    else:
        results = _run(args)
    if short is not None:
        engine().settle_short_way(short, args)
    if not return_softmax_lse:
        return results[0]
    return results if results[2] is not None else (*results[:2], *ops.no_accumulators(results[0]))


def _run(args: ForwardArgs) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Through the engine, or, where somebody watches, through the op that says what it mutates."""
    if is_plain(args.q):
        return engine().forward(args)
    if args.k_new is None and args.v_new is None and args.rotary_cos is None:
        return functional(args, deterministic=False)
    out, lse = torch.ops.flash_attn3_sm121.append(*[getattr(args, name) for name in ops.APPEND_FIELDS])
    return out, lse, None, None
