"""`flash_attn_with_kvcache`: attention over a KV cache, with new keys and values written into it in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flash_attn3_sm121.api import fast, ops
from flash_attn3_sm121.api.attend import (
    Window,
    autocast,
    functional,
    is_autocast,
    is_plain,
    length_of,
    no_tensor,
    scale_of,
    window_of,
)
from flash_attn3_sm121.call import schemas
from flash_attn3_sm121.call.arguments import ForwardArgs
from flash_attn3_sm121.call.validation import FP8
from flash_attn3_sm121.dispatch.engine import engine
from flash_attn3_sm121.dispatch.python_backend import Results
from flash_attn3_sm121.errors import CallError


def _full(cache_seqlens: int, rows: int, k_cache: Tensor) -> Tensor:
    if cache_seqlens < 0:
        raise CallError(f"cache_seqlens must not be negative, found {cache_seqlens}")
    return torch.full((rows,), cache_seqlens, dtype=torch.int32, device=k_cache.device)


def _check_room(cache_seqlens: int, k: Tensor | None, k_cache: Tensor) -> None:
    """Where every row's length is one known number, an overflow is seen without looking at any device."""
    if isinstance(k, Tensor) and k.dim() == 4 and cache_seqlens + k.shape[1] > k_cache.shape[1]:
        raise CallError(
            f"KV cache overflow: {cache_seqlens} + {k.shape[1]} new keys and a capacity of {k_cache.shape[1]}"
        )


def _check_writable(k_cache: Tensor, v_cache: Tensor) -> None:
    """An expanded cache has one place in memory for many positions: what is written to one shows in all."""
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if any(step == 0 and size > 1 for step, size in zip(cache.stride(), cache.shape, strict=True)):
            raise CallError(
                f"{name} is an expanded tensor (strides {cache.stride()}), and new keys and values cannot be written "
                "into it: several positions share one place in memory",
                hint=f"pass {name}.contiguous(), and keep it as the cache",
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
    """Attention over a KV cache; new keys and values are written into it first, in place. Not differentiable.

    Args:
        q: (b, sq, h, d) queries, or (total_q, h, d) with cu_seqlens_q.
        k_cache, v_cache: (rows, capacity, hk, d) and (rows, capacity, hk, dv), or with page_table
            (pages, page_size, hk, d) and (pages, page_size, hk, dv). In q's dtype, or fp8 (e4m3) under fp16 and bf16.
        k, v: (b, new, hk, d) and (b, new, hk, dv), written behind the first cache_seqlens[b] positions of each row.
            For a cache in fp8 they are divided by their scale and rounded, unless they are fp8 already.
        qv: a second query (b, sq, h, dv), whose products with the values are added to the scores.
        rotary_cos, rotary_sin: (positions, rotary_dim / 2), to rotate q and k by their positions; needs k.
        cache_seqlens: (b,) int32, how many positions of each row are filled, which may differ; a number for all rows;
            None: the whole cache. A negative one marks a row of padding: nothing is written, its output is 0.
        cache_batch_idx: (b,) int32, the row of the cache (or of page_table) that each sequence uses.
        cache_leftpad: (b,) int32, the first position of each row that counts.
        page_table: (b, pages of a sequence) int32, the pages that hold each sequence; -1 where there is none.
        cu_seqlens_q, max_seqlen_q: packed queries, as in flash_attn_varlen_func.
        cu_seqlens_k_new: (b + 1,) int32, where the new keys of each sequence start in packed k and v.
        rotary_seqlens: (b,) int32, the position of the first new key in the rotary tables; None: cache_seqlens.
        q_descale, k_descale, v_descale: (b, hk) fp32 scales of fp8 tensors, k's and v's together; None: 1. They are
            ignored for other dtypes.
        softmax_scale: what scores are multiplied by; None: one over the root of d.
        causal, window_size, attention_chunk, softcap, s_aux: as in flash_attn_func.
        rotary_interleaved: whether pairs to rotate are neighbours (0 and 1) or halves apart (0 and rotary_dim / 2).
        scheduler_metadata: what get_scheduler_metadata returned for this call.
        num_splits, pack_gqa, sm_margin: how kernels divide the work. The result does not depend on them.
        return_softmax_lse: whether the log-sum-exp of the scores is returned too.

    Returns:
        out (b, sq, h, dv), or (out, lse, out_accum, lse_accum): lse (b, h, sq) in fp32, and the partial results of a
        kernel that split the keys, which are empty elsewhere. What lies behind the filled positions, or in no row's
        pages, has no effect, NaN included. NaN in a filled position makes NaN of the rows that see it, and perhaps of
        other rows of that sequence.

    Raises:
        CallError: the arguments do not fit together, or (on a CPU) lengths or pages exceed the cache.
        RuntimeError: on a GPU, where lengths exceed the cache: an assertion on the device, before anything is written.
            FLASH_ATTN3_CHECK_CACHE=0 leaves it out.
        TypeError, BackendError: as flash_attn_func.
    """
    if not (isinstance(q, Tensor) and isinstance(k_cache, Tensor) and isinstance(v_cache, Tensor)):
        raise no_tensor(q=q, k_cache=k_cache, v_cache=v_cache)
    left, right = window_of(window_size)
    if k is not None and not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        _check_writable(k_cache, v_cache)
    if (
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
        and (softmax_scale is None or (isinstance(softmax_scale, float) and softmax_scale > 0))
        and type(cache_seqlens) is Tensor
        and is_plain(q)
    ):
        scalars = (causal, left, right, attention_chunk, softcap, num_splits, pack_gqa)
        results = fast.decode(
            q, k_cache, v_cache, cache_seqlens, k, v, page_table, cache_batch_idx, softmax_scale, scalars, sm_margin,
            rotary_interleaved,
        )  # fmt: skip
        if results is not None:
            return results if return_softmax_lse else results[0]
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        if cache.stride(-1) != 1:
            raise CallError(f"{name} must have contiguous last dimension")
    if is_autocast(q):
        q, k, v, qv = autocast(q), autocast(k), autocast(v), autocast(qv)
        rotary_cos, rotary_sin = autocast(rotary_cos), autocast(rotary_sin)
    whole = cache_seqlens is None and k is None and page_table is None
    if whole and k_cache.dtype not in (q.dtype, FP8):
        cache_seqlens = k_cache.shape[1]  # with lengths it is a cache, which may have another type than q
    if isinstance(cache_seqlens, int):
        if page_table is None:
            _check_room(cache_seqlens, k, k_cache)
        rows = cu_seqlens_q.shape[0] - 1 if isinstance(cu_seqlens_q, Tensor) else q.shape[0]
        cache_seqlens = _full(cache_seqlens, rows, k_cache)
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
        softmax_scale=scale_of(q, qv, softmax_scale),
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
    if not return_softmax_lse:
        return results[0]
    return results if results[2] is not None else (*results[:2], *ops.no_accumulators(results[0]))


def _run(args: ForwardArgs) -> Results:
    """Through the engine; traced or transformed calls through the op that declares what it writes to."""
    if is_plain(args.q):
        return engine().forward(args)
    if args.k_new is None and args.v_new is None and args.rotary_cos is None:
        return functional(args, deterministic=False)
    out, lse = torch.ops.flash_attn3_sm121.append(*[getattr(args, name) for name in schemas.APPEND_FIELDS])
    return out, lse, None, None
