"""The functions of `flash_attn.flash_attn_interface`: FlashAttention-2's names, argument order, defaults and results.

What differs from FlashAttention-3: `dropout_p` stands fourth, before the scale; `return_attn_probs` gives three
results; pages are called `block_table`; a cache call that returns its LSE gives two results. Causal masks end at the
last key in both. Dropout and ALiBi are refused with a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flash_attn3_sm121.api import interface as fa3
from flash_attn3_sm121.api.attend import window_of
from flash_attn3_sm121.call.arguments import default_scale
from flash_attn3_sm121.fa2 import raw

Window = Sequence[int]


def _unscaled(q: Tensor, softmax_scale: float | None) -> tuple[Tensor, float | None]:
    """A scale of 0 weighs all keys equally. FlashAttention-3 takes it for a misplaced dropout_p; here it is meant."""
    return (q * 0, None) if softmax_scale == 0 else (q, softmax_scale)


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """Attention over dense tensors, differentiable in q, k and v.

    Args:
        q: (b, sq, h, d) queries.
        k, v: (b, sk, hk, d) keys and values; hk divides h.
        dropout_p: 0.
        softmax_scale: what scores are multiplied by; None: one over the root of d.
        causal: whether a row sees no key behind its own position; the last row stands at the last key.
        window_size: (left, right), how many keys before and behind its position a row sees; -1: unlimited.
        softcap: if positive, scores become softcap * tanh(scores / softcap).
        alibi_slopes: None.
        deterministic: whether the backward must give the same bits each time.
        return_attn_probs: whether the LSE is returned too.

    Returns:
        out (b, sq, h, d), or (out, lse, probabilities): lse (b, h, sq) in fp32. FlashAttention-2 computes
        probabilities only with dropout, so they are an empty tensor.

    Raises:
        CallError: dropout or ALiBi is asked for, or the arguments do not fit together.
        TypeError, BackendError: as FlashAttention-3's `flash_attn_func` here.
    """
    raw.refuse(dropout_p, alibi_slopes)
    q, softmax_scale = _unscaled(q, softmax_scale)
    result = fa3.flash_attn_func(
        raw.last_contiguous(q),
        raw.last_contiguous(k),
        raw.last_contiguous(v),
        softmax_scale=softmax_scale,
        causal=causal,
        window_size=window_size,
        softcap=raw.cap(softcap),
        deterministic=deterministic,
        return_attn_probs=return_attn_probs,
    )
    return (*result, q.new_empty(0)) if return_attn_probs else result


def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flash_attn_func` with keys and values in one tensor (b, sk, 2, hk, d)."""
    k, v = raw.parts("kv", kv, 2, 2)
    return flash_attn_func(
        q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs
    )


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flash_attn_func` with queries, keys and values in one tensor (b, s, 3, h, d)."""
    q, k, v = raw.parts("qkv", qkv, 2, 3)
    return flash_attn_func(
        q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs
    )


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Any:
    """Attention over sequences of different lengths, packed one behind the other.

    Args:
        q: (total_q, h, d) queries.
        k, v: (total_k, hk, d) keys and values, or with block_table the pages (pages, page_size, hk, d).
        cu_seqlens_q, cu_seqlens_k: (b + 1,) int32, where each sequence starts; the first is 0, the last the total.
        max_seqlen_q, max_seqlen_k: upper bounds of the lengths.
        block_table: (b, pages of a sequence) int32, the pages that hold each sequence; forward only.

    The other arguments and what is raised are those of `flash_attn_func`.

    Returns:
        out (total_q, h, d), or (out, lse, probabilities): lse (h, total_q) in fp32, and an empty tensor.
    """
    raw.refuse(dropout_p, alibi_slopes)
    q, softmax_scale = _unscaled(q, softmax_scale)
    result: Any
    if block_table is not None:
        scale = default_scale(q) if softmax_scale is None else softmax_scale
        result = _flash_attn_varlen_forward(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, 0.0, scale, causal,
            *window_of(window_size), softcap, block_table=block_table,
        )  # fmt: skip
        result = result[:2] if return_attn_probs else result[0]
    else:
        result = fa3.flash_attn_varlen_func(
            raw.last_contiguous(q),
            raw.last_contiguous(k),
            raw.last_contiguous(v),
            cu_seqlens_q,
            cu_seqlens_k,
            max_seqlen_q,
            max_seqlen_k,
            softmax_scale=softmax_scale,
            causal=causal,
            window_size=window_size,
            softcap=raw.cap(softcap),
            deterministic=deterministic,
            return_attn_probs=return_attn_probs,
        )
    return (*result, q.new_empty(0)) if return_attn_probs else result


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flash_attn_varlen_func` with keys and values in one tensor (total_k, 2, hk, d)."""
    k, v = raw.parts("kv", kv, 1, 2)
    return flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal, window_size,
        softcap, alibi_slopes, deterministic, return_attn_probs,
    )  # fmt: skip


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Any:
    """`flash_attn_varlen_func` with queries, keys and values in one tensor (total, 3, h, d)."""
    q, k, v = raw.parts("qkv", qkv, 1, 3)
    return flash_attn_varlen_func(
        q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, dropout_p, softmax_scale, causal, window_size,
        softcap, alibi_slopes, deterministic, return_attn_probs,
    )  # fmt: skip


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Any:
    """Attention over a KV cache; new keys and values are written into it first, in place. Not differentiable.

    `block_table` is FlashAttention-3's `page_table`, with pages of any size. The other arguments are those of the
    function of this name in `flash_attn_interface`, of which there are more.

    Returns:
        out (b, sq, h, d), or (out, lse) with lse (b, h, sq) in fp32.
    """
    q, softmax_scale = _unscaled(q, softmax_scale)
    out, lse = raw.fwd_kvcache(
        q, k_cache, v_cache, k, v, cache_seqlens, rotary_cos, rotary_sin, cache_batch_idx, cache_leftpad, block_table,
        alibi_slopes, None, softmax_scale, causal, *window_of(window_size), softcap, rotary_interleaved, num_splits,
    )  # fmt: skip
    return (out, lse) if return_softmax_lse else out


# -- the private functions, which ring attention and diffusers build their own autograd functions from


def _flash_attn_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    return_softmax: bool,
) -> tuple[Tensor, ...]:
    """(out, lse, an empty tensor, a random state that nobody used) of one dense forward."""
    return tuple(
        raw.fwd(
            q, k, v, None, alibi_slopes, dropout_p, softmax_scale, causal, window_size_left, window_size_right,
            softcap, return_softmax,
        )
    )  # fmt: skip


def _flash_attn_varlen_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    return_softmax: bool = False,
    block_table: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    zero_tensors: bool = False,
) -> tuple[Tensor, ...]:
    """As `_flash_attn_forward`, over packed sequences."""
    return tuple(
        raw.varlen_fwd(
            q, k, v, None, cu_seqlens_q, cu_seqlens_k, seqused_k, leftpad_k, block_table, alibi_slopes, max_seqlen_q,
            max_seqlen_k, dropout_p, softmax_scale, zero_tensors, causal, window_size_left, window_size_right, softcap,
            return_softmax,
        )
    )  # fmt: skip


def _flash_attn_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
) -> Tensor:
    """Write the gradients into dq, dk and dv; returns the row sums of dO * O."""
    return raw.bwd(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, alibi_slopes, dropout_p, softmax_scale, causal, window_size_left,
        window_size_right, softcap, deterministic, None, rng_state,
    )[3]  # fmt: skip


def _flash_attn_varlen_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
    zero_tensors: bool = False,
) -> Tensor:
    """As `_flash_attn_backward`, over packed sequences."""
    return raw.varlen_bwd(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, alibi_slopes, max_seqlen_q,
        max_seqlen_k, dropout_p, softmax_scale, zero_tensors, causal, window_size_left, window_size_right, softcap,
        deterministic, None, rng_state,
    )[3]  # fmt: skip


# In flash_attn these are the same functions as torch ops; here plain ones, which compilers trace through.
_wrapped_flash_attn_forward = _flash_attn_forward
_wrapped_flash_attn_varlen_forward = _flash_attn_varlen_forward
_wrapped_flash_attn_backward = _flash_attn_backward
_wrapped_flash_attn_varlen_backward = _flash_attn_varlen_backward
