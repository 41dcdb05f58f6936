"""Calls that a family library serves: what is done around its kernels, which trust their arguments more than we do."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import ModuleType

import torch
from torch import Tensor

from flash_attn3_sm121.call import schemas
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.call.validation import check_backward, check_forward
from flash_attn3_sm121.dispatch import python_backend
from flash_attn3_sm121.dispatch.classes import Tensors, is_readable
from flash_attn3_sm121.dispatch.decide import Decision
from flash_attn3_sm121.dispatch.python_backend import BackwardResult, Computes, DenseOp, Gradients, Results
from flash_attn3_sm121.native import library as native

_SCALARS = (
    *("softmax_scale", "is_causal", "window_size_left", "window_size_right", "attention_chunk", "softcap"),
    *("num_splits", "pack_gqa", "sm_margin"),
)
_DENSE = ("q", "k", "v", *_SCALARS)
_DECODE = (
    "q",
    "k",
    "v",
    "seqused_k",
    "k_new",
    "v_new",
    "page_table",
    "kv_batch_idx",
    *_SCALARS,
    "is_rotary_interleaved",
)


_ALLOCATING = ("new_empty", "new_zeros", "empty_like", "aten_pad")  # a library gets memory from torch by these


def out_of_memory(error: RuntimeError) -> torch.OutOfMemoryError | None:
    """torch's OutOfMemoryError, if memory ran out; a library only says that its call of torch failed."""
    if isinstance(error, torch.OutOfMemoryError):
        return error
    text = str(error)
    if "API call failed" not in text or not any(name in text for name in _ALLOCATING):
        return None
    return torch.OutOfMemoryError(f"CUDA out of memory. A kernel library could not get memory of torch: {text}")


@dataclass(kw_only=True, slots=True)
class NativePlan:
    """How calls of one class are served by a family library."""

    decision: Decision
    ops: native.LoadedOps
    can_split: bool  # the library can do what num_splits asks for
    check_cache: bool
    appends: bool = True  # the kernels write new keys
    widened: bool = False  # K and V are e4m3, and kernels widen them
    instead: Callable[[RuntimeError], Computes]  # the backend for tensors that kernels cannot take; raises other errors
    _dense: DenseOp | None = field(init=False, default=None)
    # A function of (q, k_cache, v_cache, cache_seqlens, k, v, page_table, cache_batch_idx, softmax_scale, ...).
    decode_op: DenseOp | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.can_split and self.appends:
            schema = schemas.NATIVE["fwd"]
            self._dense = schemas.caller(self.ops.fwd, schema, *_DENSE, is_rotary_interleaved=True)
            self.decode_op = schemas.caller(self.ops.fwd, schema, *_DECODE)

    def dense_op(self, q: Tensor, k: Tensor, v: Tensor) -> DenseOp | None:
        """A function of (q, k, v, softmax_scale, causal, ...) for a dense call, if the op can take it as it is."""
        return self._dense if q.numel() and is_readable(q) and is_readable(k) and is_readable(v) else None

    def forward(self, args: ForwardArgs, tensors: Tensors) -> Results:
        # Kernels divide by the number of heads, and cannot be launched for nothing.
        if args.q.numel() == 0 or (args.k.numel() == 0 and args.s_aux is not None):
            return self._by_fallback(python_backend.load("sdpa"), args)
        if args.k_new is not None:
            if self.check_cache:
                native.assert_room(args)
            args = native.without_padding(args) if self.appends else _fallback().appended(args)
        args = self._prepared(args, tensors)
        try:
            asked = widened(args) if self.widened else args
            out, lse, out_accum, lse_accum = native.run_forward(self.ops, asked)
        except RuntimeError as error:
            return self._by_fallback(self.instead(error), args)
        if args.seqused_q is not None:
            native.blank_unused_rows(out, lse, args)
        return out, lse, out_accum, lse_accum

    def _prepared(self, args: ForwardArgs, tensors: Tensors) -> ForwardArgs:
        """The call as a kernel may have it."""
        if args.num_splits < 1 and not self.can_split:
            args = replace(args, num_splits=1)
        if args.scheduler_metadata is not None and not native.is_native_metadata(args.scheduler_metadata, args):
            args = replace(args, scheduler_metadata=None)  # zeros, or another call's, would be taken at their word
        if args.s_aux is not None or args.rotary_cos is not None:
            return native.readable(args)
        for tensor in tensors:
            if tensor is not None and not is_readable(tensor):
                return native.readable(args)
        return args

    def _by_fallback(self, backend: Computes, args: ForwardArgs) -> Results:
        check_forward(args)
        return python_backend.forward(backend, args, check_cache=self.check_cache)

    def backward(self, args: BackwardArgs, tensors: Tensors, into: Gradients | None) -> BackwardResult:
        if args.q.numel() == 0 or args.k.numel() == 0:
            check_backward(args)
            return python_backend.backward(python_backend.load("sdpa"), args, into)
        assert self.decision.build is not None
        given, args = args, native.readable(args)
        try:
            native.assert_indexed(args, self.decision.build.backward_head_dims)
            dq, dk, dv = into or (_fresh(args.q), _fresh(args.k), _fresh(args.v))
            native.blank_unused_gradients(dq, dk, dv, args)
            softmax_d = native.run_backward(self.ops, args, dq, dk, dv)
        except RuntimeError as error:
            other = self.instead(error)
            check_backward(args)
            return python_backend.backward(other, given, into)
        ds_aux = None if args.s_aux is None else native.sink_gradient(args, softmax_d)
        return BackwardResult(dq=dq, dk=dk, dv=dv, ds_aux=ds_aux, softmax_d=softmax_d)


def widened(args: ForwardArgs) -> ForwardArgs:
    """A call on K and V in e4m3 as kernels that widen them take it: Q in 16 bits, which every number in e4m3 fits.

    The scale of an fp8 Q goes into that of the scores; one that is given beside another Q counts nothing, as always.
    """
    if args.q.dtype == torch.float8_e4m3fn:
        return replace(args, q=args.q.to(torch.bfloat16))
    return replace(args, q_descale=None)


def _fallback() -> ModuleType:
    return importlib.import_module("flash_attn3_sm121.fallback")


def _fresh(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)
