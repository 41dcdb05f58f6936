"""`_flash_attn_forward` and `_flash_attn_backward`: what diffusers, TransformerEngine and context-parallel code call.

Two generations of callers exist. Older ones pass `window_size=(left, right)` as one argument, newer ones pass
`window_size_left, window_size_right`; both work here, positionally and by keyword, with either generation's names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from flash_attn3_sm121.api import ops
from flash_attn3_sm121.api.attend import attend, is_plain, length_of, scale_of
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.call.validation import check_gradients
from flash_attn3_sm121.dispatch.engine import engine

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _either_generation(window_position: int, aliases: dict[str, str]) -> Callable[[_Function], _Function]:
    """Turn the other generation's arguments into this one's before the call."""

    def decorate(function: _Function) -> _Function:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if len(args) > window_position and isinstance(args[window_position], (tuple, list)):
                args = (*args[:window_position], *args[window_position], *args[window_position + 1 :])
            if "window_size" in kwargs:
                kwargs["window_size_left"], kwargs["window_size_right"] = kwargs.pop("window_size")
            for theirs, ours in aliases.items():
                if theirs in kwargs:
                    kwargs[ours] = kwargs.pop(theirs)
            return function(*args, **kwargs)

        call.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]  # for inspect.getfullargspec
        return cast(_Function, call)

    return decorate


@_either_generation(25, {"out": "out_", "is_causal": "causal", "q_v": "qv"})
def _flash_attn_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_new: Tensor | None = None,
    v_new: Tensor | None = None,
    qv: Tensor | None = None,
    out_: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    max_seqlen_q: int | Tensor | None = None,
    max_seqlen_k: int | Tensor | None = None,
    page_table: Tensor | None = None,
    kv_batch_idx: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    seqlens_rotary: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size_left: int = -1,
    window_size_right: int = -1,
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Tensor | None = None,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One forward call with every argument that upstream's op has.

    Args: as of `flash_attn_func`, `flash_attn_varlen_func` and `flash_attn_with_kvcache`; the window as two numbers
    (or, as older callers pass it, as one pair). `out_` gets the result where it is given.

    Returns:
        (out, lse, out_accum, lse_accum); the last two are empty unless a kernel split the keys.

    Raises:
        TypeError: the call writes (new keys, `out_`) and is being traced by a compiler.
        CallError: the arguments do not fit together.
    """
    args = ForwardArgs(
        q=q,
        k=k,
        v=v,
        k_new=k_new,
        v_new=v_new,
        qv=qv,
        out=out_,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        cu_seqlens_k_new=cu_seqlens_k_new,
        seqused_q=seqused_q,
        seqused_k=seqused_k,
        max_seqlen_q=length_of(max_seqlen_q, q),
        max_seqlen_k=length_of(max_seqlen_k, k),
        page_table=page_table,
        kv_batch_idx=kv_batch_idx,
        leftpad_k=leftpad_k,
        rotary_cos=rotary_cos,
        rotary_sin=rotary_sin,
        seqlens_rotary=seqlens_rotary,
        q_descale=q_descale,
        k_descale=k_descale,
        v_descale=v_descale,
        softmax_scale=scale_of(q, None, softmax_scale),
        causal=causal,
        window_left=window_size_left,
        window_right=window_size_right,
        attention_chunk=attention_chunk,
        softcap=softcap,
        rotary_interleaved=rotary_interleaved,
        scheduler_metadata=scheduler_metadata,
        num_splits=num_splits,
        pack_gqa=pack_gqa,
        sm_margin=sm_margin,
    )
    writes = k_new is not None or v_new is not None or out_ is not None or rotary_cos is not None
    if not writes:
        out, lse, out_accum, lse_accum = attend(args)
    elif is_plain(q):
        with torch.no_grad():
            out, lse, out_accum, lse_accum = engine().forward(args)
    else:
        raise TypeError(
            "_flash_attn_forward cannot be traced (torch.compile, export) when it writes into out or a cache; "
            "use flash_attn_with_kvcache"
        )
    if out_accum is None or lse_accum is None:
        out_accum, lse_accum = ops.no_accumulators(out)
    return out, lse, out_accum, lse_accum


@_either_generation(17, {"causal": "is_causal", "seqused_q": "sequed_q", "seqused_k": "sequed_k"})
def _flash_attn_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    sequed_q: Tensor | None = None,
    sequed_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    dq: Tensor | None = None,
    dk: Tensor | None = None,
    dv: Tensor | None = None,
    softmax_scale: float | None = None,
    is_causal: bool = False,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    deterministic: bool = False,
    sm_margin: int = 0,
) -> Tensor:
    """The backward of `_flash_attn_forward`; the gradients are written into `dq`, `dk` and `dv`.

    Args:
        dout: the gradient of `out`.
        out, softmax_lse: what the forward returned.
        sequed_q, sequed_k: upstream's spelling of seqused_q and seqused_k; both are taken.
        deterministic: whether the gradients must have the same bits each time.

    Returns:
        softmax_d, the row sums of dO * O, in the layout of the LSE. Kernels pad its rows, and leave room between
        packed sequences.

    Raises:
        CallError: the arguments do not fit together.
    """
    args = BackwardArgs(
        dout=dout,
        q=q,
        k=k,
        v=v,
        out=out,
        softmax_lse=softmax_lse,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        seqused_q=sequed_q,
        seqused_k=sequed_k,
        max_seqlen_q=length_of(max_seqlen_q, q),
        max_seqlen_k=length_of(max_seqlen_k, k),
        softmax_scale=scale_of(q, None, softmax_scale),
        causal=is_causal,
        window_left=window_size_left,
        window_right=window_size_right,
        softcap=softcap,
        deterministic=deterministic,
        sm_margin=sm_margin,
    )
    if is_plain(q):
        _, softmax_d = ops.written_gradients(args, (dq, dk, dv))
        return softmax_d
    check_gradients(args, (dq, dk, dv))
    for into, gradient in zip((dq, dk, dv), ops.functional_backward(args)[:3], strict=True):
        if into is not None:
            into.copy_(gradient)
    return ops.row_sums(out, dout)
