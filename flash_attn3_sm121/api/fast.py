"""The fast path: plain dense calls and plain decoding, straight to the op once their class was decided.

The Python around a kernel shows in these calls. Each function makes the key of the call's class from the arguments as
they come, looks up the plan that the engine made for the first call of the class, and calls the plan's op. It returns
None where there is no plan or the call needs more than the op; the caller then goes through the engine.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flash_attn3_sm121.api.eager import Dense, Scalars
from flash_attn3_sm121.dispatch.classes import decode_class, dense_class
from flash_attn3_sm121.dispatch.engine import engine
from flash_attn3_sm121.dispatch.native_backend import out_of_memory
from flash_attn3_sm121.dispatch.python_backend import Results
from flash_attn3_sm121.native import library


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None,
    scalars: Scalars,
    sm_margin: int,
    deterministic: bool,
) -> tuple[Tensor, Tensor] | None:
    """(out, lse) of a dense call, differentiable in q, k and v; the lse need not be contiguous."""
    dim = q.shape[-1]
    plan = engine().plans.get(dense_class(q, k, v, dim, scalars))
    op = None if plan is None else plan.dense_op(q, k, v)
    if op is None:
        return None
    scale = dim**-0.5 if softmax_scale is None else softmax_scale
    try:
        if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            call = (scale, scalars, sm_margin, deterministic)
            out, lse = Dense.apply(q, k, v, op, call)  # type: ignore[no-untyped-call]
        else:
            out, lse, _, _ = op(q, k, v, scale, *scalars, sm_margin)
        return out, lse
    except RuntimeError as error:
        if library.is_refused(error) or out_of_memory(error):
            return None  # the engine knows which backend reads such tensors, and what torch says of a full memory
        raise


def decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    page_table: Tensor | None,
    cache_batch_idx: Tensor | None,
    softmax_scale: float | None,
    scalars: Scalars,
    sm_margin: int,
    rotary_interleaved: bool,
) -> Results | None:
    """(out, lse, out_accum, lse_accum) of a call over a cache."""
    shape = q.shape
    dim = shape[-1]
    try:
        call = decode_class(q, k_cache, v_cache, cache_seqlens, k, v, page_table, cache_batch_idx, dim, scalars)
    except AttributeError:
        return None  # one of these is no tensor: validation says which
    plan = engine().plans.get(call)
    if plan is None:
        return None
    op = plan.decode_op
    if op is None or not (q.is_contiguous() or q.stride(-1) == 1) or 0 in shape:
        return None
    if k is not None:
        if k.shape[1] != 1 or not (k.is_contiguous() or k.stride(-1) == 1):
            return None  # with more than one new key, padded rows are to be marked (`native.without_padding`)
        if plan.check_cache:
            library.assert_room_for(1, k_cache, page_table, cache_seqlens)
    scale = dim**-0.5 if softmax_scale is None else softmax_scale
    causal, left, right, chunk, softcap, num_splits, pack_gqa = scalars
    try:
        return op(
            q, k_cache, v_cache, cache_seqlens, k, v, page_table, cache_batch_idx, scale, causal, left, right, chunk,
            softcap, num_splits, pack_gqa, sm_margin, rotary_interleaved,
        )  # fmt: skip
    except RuntimeError as error:
        if library.is_refused(error) or out_of_memory(error):
            return None  # the engine knows which backend reads such tensors, and what torch says of a full memory
        raise
