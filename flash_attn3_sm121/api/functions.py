"""Upstream's autograd functions by their names, for programs that apply or subclass them.

The arguments, what is saved, and the attributes of `ctx` are upstream's. The public functions do not go through them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flash_attn3_sm121.api import ops
from flash_attn3_sm121.api.attend import Window, attend, is_plain, length_of, scale_of, window_of
from flash_attn3_sm121.api.interface import split_qkv
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.dispatch.engine import engine
from flash_attn3_sm121.errors import CallError


def _run(ctx: Any, args: ForwardArgs, deterministic: bool, return_softmax: bool) -> Any:
    """The result of a call, and in `ctx` what its backward needs."""
    out, lse, _, _ = attend(args)
    lengths = (args.cu_seqlens_q, args.cu_seqlens_k, args.seqused_q, args.seqused_k)
    packed = any(tensor is not None for tensor in lengths)
    ctx.save_for_backward(args.q, args.k, args.v, out, lse, *(lengths if packed else ()))
    ctx.max_seqlen_q, ctx.max_seqlen_k = args.max_seqlen_q, args.max_seqlen_k
    ctx.softmax_scale, ctx.causal = args.softmax_scale, args.causal
    ctx.window_size, ctx.attention_chunk = (args.window_left, args.window_right), args.attention_chunk
    ctx.softcap, ctx.deterministic, ctx.sm_margin = args.softcap, deterministic, args.sm_margin
    ctx.has_qv = args.qv is not None
    ctx.set_materialize_grads(False)
    return (out, lse) if return_softmax else out


def _gradients(ctx: Any, dout: Tensor | None, dlse: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    if ctx.has_qv:
        raise CallError("qv: forward only, there is no gradient through this call")
    q, k, v, out, lse, *lengths = ctx.saved_tensors
    named = zip(("cu_seqlens_q", "cu_seqlens_k", "seqused_q", "seqused_k"), lengths, strict=False)
    left, right = ctx.window_size
    args = BackwardArgs(
        dout=torch.zeros_like(out) if dout is None else dout, dlse=dlse, q=q, k=k, v=v, out=out, softmax_lse=lse,
        **dict(named), max_seqlen_q=ctx.max_seqlen_q, max_seqlen_k=ctx.max_seqlen_k, softmax_scale=ctx.softmax_scale,
        causal=ctx.causal, window_left=left, window_right=right, attention_chunk=ctx.attention_chunk,
        softcap=ctx.softcap, deterministic=ctx.deterministic, sm_margin=ctx.sm_margin,
    )  # fmt: skip
    if torch.is_grad_enabled() or not is_plain(q):
        return ops.functional_backward(args)[:3]
    result = engine().backward(args)
    return result.dq, result.dk, result.dv


class FlashAttnFunc(torch.autograd.Function):
    """Attention over dense tensors; see `flash_attn_func`."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        softmax_scale: float | None,
        causal: bool,
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
        return_softmax: bool = False,
    ) -> Any:
        left, right = window_of(window_size)
        args = ForwardArgs(
            q=q, k=k, v=v, softmax_scale=scale_of(q, qv, softmax_scale), causal=causal, qv=qv, q_descale=q_descale,
            k_descale=k_descale, v_descale=v_descale, window_left=left, window_right=right, softcap=softcap,
            attention_chunk=attention_chunk, num_splits=num_splits, pack_gqa=pack_gqa, sm_margin=sm_margin,
        )  # fmt: skip
        return _run(ctx, args, deterministic, return_softmax)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, *args: Tensor | None) -> Any:
        return *_gradients(ctx, dout, *args), *[None] * 14


class FlashAttnVarlenFunc(torch.autograd.Function):
    """Attention over packed sequences; see `flash_attn_varlen_func`. The order of the arguments is another one."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor | None,
        cu_seqlens_k: Tensor | None,
        seqused_q: Tensor | None,
        seqused_k: Tensor | None,
        max_seqlen_q: int | Tensor | None,
        max_seqlen_k: int | Tensor | None,
        softmax_scale: float | None,
        causal: bool,
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
        return_softmax: bool = False,
    ) -> Any:
        left, right = window_of(window_size)
        args = ForwardArgs(
            q=q, k=k, v=v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, seqused_q=seqused_q,
            seqused_k=seqused_k, max_seqlen_q=length_of(max_seqlen_q, q), max_seqlen_k=length_of(max_seqlen_k, k),
            softmax_scale=scale_of(q, qv, softmax_scale), causal=causal, qv=qv, q_descale=q_descale,
            k_descale=k_descale, v_descale=v_descale, window_left=left, window_right=right, softcap=softcap,
            attention_chunk=attention_chunk, num_splits=num_splits, pack_gqa=pack_gqa, sm_margin=sm_margin,
        )  # fmt: skip
        return _run(ctx, args, deterministic, return_softmax)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, *args: Tensor | None) -> Any:
        return *_gradients(ctx, dout, *args), *[None] * 20


class FlashAttnQKVPackedFunc(torch.autograd.Function):
    """Attention over queries, keys and values in one tensor; see `flash_attn_qkvpacked_func`."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        softmax_scale: float | None,
        causal: bool,
        q_descale: Tensor | None = None,
        k_descale: Tensor | None = None,
        v_descale: Tensor | None = None,
        window_size: Window = (-1, -1),
        attention_chunk: int = 0,
        softcap: float = 0.0,
        deterministic: bool = False,
        num_heads_q: int | None = None,
        sm_margin: int = 0,
        return_softmax: bool = False,
    ) -> Any:
        ctx.ndim = qkv.dim()
        q, k, v = split_qkv(qkv, num_heads_q)
        left, right = window_of(window_size)
        args = ForwardArgs(
            q=q, k=k, v=v, softmax_scale=scale_of(q, None, softmax_scale), causal=causal, q_descale=q_descale,
            k_descale=k_descale, v_descale=v_descale, window_left=left, window_right=right, softcap=softcap,
            attention_chunk=attention_chunk, sm_margin=sm_margin,
        )  # fmt: skip
        return _run(ctx, args, deterministic, return_softmax)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, *args: Tensor | None) -> Any:
        gradients = _gradients(ctx, dout, *args)
        joined = torch.stack(gradients, dim=2) if ctx.ndim == 5 else torch.cat(gradients, dim=2)
        return joined, *[None] * 12
