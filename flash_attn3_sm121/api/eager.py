"""Training in eager mode: autograd functions straight over the engine.

The functional ops of `ops.py` say the same to autograd and to compilers, and cost some 200 us a call in torch's
dispatcher. Where only autograd watches, this is fifteen times cheaper.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from flash_attn3_sm121.api import ops
from flash_attn3_sm121.call import backend
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.dispatch.engine import engine
from flash_attn3_sm121.dispatch.python_backend import DenseOp

# Fetched in C, in one go: this runs on every call.
_KEPT_NAMES = tuple(name for name in ops.KEPT if name != "deterministic")
_kept = operator.attrgetter(*_KEPT_NAMES)
_saved = operator.attrgetter(*ops.SAVED)

# causal, window_left, window_right, attention_chunk, softcap, num_splits, pack_gqa
Scalars = tuple[bool, int, int, int, float, int, "bool | None"]


def serves(args: ForwardArgs) -> bool:
    """Whether a call has a gradient at all; for the others the functional op says why they have none."""
    return args.qv is None and args.page_table is None and args.kv_batch_idx is None and args.leftpad_k is None


class _Attention(torch.autograd.Function):
    """q, k, v and s_aux are arguments of their own, so that autograd sees them; the rest comes along in `args`."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, s_aux: Tensor | None, args: ForwardArgs, deterministic: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.given = (_kept(args), deterministic)
        ctx.scope = backend.scoped()
        out, lse, _, _ = engine().forward(args)
        ctx.save_for_backward(*_saved(args), out, lse)
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        kept, deterministic = ctx.given
        ctx.kept = {**dict(zip(_KEPT_NAMES, kept, strict=True)), "deterministic": deterministic}
        ctx.forward_only = ()
        args = BackwardArgs(**ops.backward_arguments(ctx, dout, dlse))
        dq, dk, dv, ds_aux = _gradients(args, ctx.scope)
        return dq, dk, dv, None if args.s_aux is None else ds_aux, None, None


def _gradients(args: BackwardArgs, scope: str | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    with backend.within(scope):
        if torch.is_grad_enabled():  # create_graph: the op's own backward says why there is no second derivative
            return ops.functional_backward(args)
        result = engine().backward(args)
        return result.dq, result.dk, result.dv, result.ds_aux


class Dense(torch.autograd.Function):
    """A dense call without extras through the op of its plan (see `fast.py`), differentiable in q, k and v."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        op: DenseOp,
        call: tuple[float, Scalars, int, bool],
    ) -> tuple[Tensor, Tensor]:
        ctx.call, ctx.scope = call, backend.scoped()
        scale, scalars, sm_margin, _ = call
        out, lse, _, _ = op(q, k, v, scale, *scalars, sm_margin)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        scale, (causal, left, right, chunk, softcap, _, _), sm_margin, deterministic = ctx.call
        args = BackwardArgs(
            dout=torch.zeros_like(out) if dout is None else dout, dlse=dlse, q=q, k=k, v=v, out=out, softmax_lse=lse,
            softmax_scale=scale, causal=causal, window_left=left, window_right=right, attention_chunk=chunk,
            softcap=softcap, deterministic=deterministic, sm_margin=sm_margin,
        )  # fmt: skip
        return (*_gradients(args, ctx.scope)[:3], None, None)


def attend(args: ForwardArgs, *, deterministic: bool) -> tuple[Tensor, Tensor, None, None]:
    """Differentiable in q, k, v and s_aux."""
    out, lse = _Attention.apply(args.q, args.k, args.v, args.s_aux, args, deterministic)  # type: ignore[no-untyped-call]
    return out, lse, None, None
