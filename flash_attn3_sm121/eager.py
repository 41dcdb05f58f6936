"""The short way of training in eager mode: an autograd function straight over the engine.

The functional ops of `ops.py` say the same to autograd and to compilers, at a price of some 200 us a call in the
dispatcher. Where nobody but autograd watches, this is fifteen times cheaper.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from flash_attn3_sm121 import ops
from flash_attn3_sm121.call import BackwardArgs, ForwardArgs
from flash_attn3_sm121.engine import engine

# Fetched in C, in one go: this runs on every call.
_KEPT_NAMES = tuple(name for name in ops.KEPT if name != "deterministic")
_kept = operator.attrgetter(*_KEPT_NAMES)
_saved = operator.attrgetter(*ops.SAVED)


def serves(args: ForwardArgs) -> bool:
    """Only what has a gradient at all; the functional op says of the rest why it has none."""
    return args.qv is None and args.page_table is None and args.kv_batch_idx is None and args.leftpad_k is None


class _Attention(torch.autograd.Function):
    """q, k, v and s_aux are arguments of their own, so that autograd sees them; the rest comes along in `args`."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, s_aux: Tensor | None, args: ForwardArgs, deterministic: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.given = (_kept(args), deterministic)  # before the engine normalises the window in place
        out, lse, _, _ = engine().forward(args)
        ctx.save_for_backward(*_saved(args), out, lse)
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        kept, deterministic = ctx.given
        ctx.kept = {**dict(zip(_KEPT_NAMES, kept, strict=True)), "deterministic": deterministic}
        ctx.forward_only = ()
        given = ops.backward_arguments(ctx, dout, dlse)
        ds_aux: Tensor | None
        if torch.is_grad_enabled():  # create_graph: the op's own backward says why there is no second derivative
            dq, dk, dv, ds_aux = torch.ops.flash_attn3_sm121.backward(*(given[name] for name in ops.BACKWARD_FIELDS))
        else:
            result = engine().backward(BackwardArgs(**given))
            dq, dk, dv, ds_aux = result.dq, result.dk, result.dv, result.ds_aux
        return dq, dk, dv, None if given["s_aux"] is None else ds_aux, None, None


def attend(args: ForwardArgs, *, deterministic: bool) -> tuple[Tensor, Tensor, None, None]:
    """Differentiable in q, k, v and s_aux."""
    out, lse = _Attention.apply(args.q, args.k, args.v, args.s_aux, args, deterministic)  # type: ignore[no-untyped-call]
    return out, lse, None, None
