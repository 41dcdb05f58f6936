"""Calls that a backend written in Python serves: FlexAttention (`flex`) or the complete fallback (`sdpa`)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from torch import Tensor

from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs, normal_form
from flash_attn3_sm121.call.validation import check_backward, check_forward
from flash_attn3_sm121.dispatch.classes import Tensors, is_readable, shapes_of
from flash_attn3_sm121.dispatch.decide import Decision

Results = tuple[Tensor, Tensor, "Tensor | None", "Tensor | None"]
Gradients = tuple[Tensor, Tensor, Tensor]
DenseOp = Callable[..., Results]
MAX_SHAPES = 4096


class Computes(Protocol):
    """What a backend written in Python offers."""

    def forward(self, args: ForwardArgs, *, check_cache: bool = True) -> tuple[Tensor, Tensor]: ...
    def backward(self, args: BackwardArgs) -> tuple[Tensor, Tensor, Tensor, Tensor | None]: ...
    def dense_op(self, args: ForwardArgs) -> DenseOp | None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class BackwardResult:
    """The gradients. `softmax_d` (rowsum of dO * O) only where a kernel happened to compute it."""

    dq: Tensor
    dk: Tensor
    dv: Tensor
    ds_aux: Tensor | None = None
    softmax_d: Tensor | None = None


def load(name: str) -> Computes:
    """The module of a backend ("sdpa" or "flex"), imported when it is first needed."""
    module = {"sdpa": "flash_attn3_sm121.fallback", "flex": "flash_attn3_sm121.flex"}[name]
    return cast(Computes, importlib.import_module(module))


def forward(backend: Computes, args: ForwardArgs, *, check_cache: bool = True) -> Results:
    """Run a validated call; `args.out` gets the result where it is given."""
    out, lse = backend.forward(normal_form(args), check_cache=check_cache)
    if args.out is not None and out is not args.out:
        out = args.out.copy_(out)
    return out, lse, None, None


def backward(backend: Computes, args: BackwardArgs, into: Gradients | None) -> BackwardResult:
    """The same for gradients, which end in `into` where it is given."""
    dq, dk, dv, ds_aux = backend.backward(normal_form(args))
    if into is not None:
        for mine, new in zip(into, (dq, dk, dv), strict=True):
            mine.copy_(new)
        dq, dk, dv = into
    return BackwardResult(dq=dq, dk=dk, dv=dv, ds_aux=ds_aux)


@dataclass(kw_only=True, slots=True)
class PythonPlan:
    """How calls of one class are served by a backend written in Python.

    Such a backend relies on validated shapes, and no kernel checks them: `valid` holds the shapes that passed. Dense
    calls of some shapes need no more than one function of torch: `dense` holds it, or None, for each such set.
    """

    decision: Decision
    backend: Computes
    check_cache: bool = True
    decode_op: None = None  # what each row of a cache sees has to be worked out in every call
    valid: set[Any] = field(default_factory=set)
    dense: dict[Any, DenseOp | None] = field(default_factory=dict)

    def dense_op(self, q: Tensor, k: Tensor, v: Tensor) -> DenseOp | None:
        """A function of (q, k, v, softmax_scale, causal, ...) for a dense call of shapes that were met before."""
        fits = is_readable(q) and is_readable(k) and is_readable(v)
        return self.dense.get((q.shape, k.shape, v.shape)) if fits else None

    def forward(self, args: ForwardArgs, tensors: Tensors) -> Results:
        shapes = shapes_of(args, tensors)
        if shapes not in self.valid:
            check_forward(args)
            self._remember(shapes, args, plain=not any(tensor is not None for tensor in tensors[3:]))
        return forward(self.backend, args, check_cache=self.check_cache)

    def _remember(self, shapes: Any, args: ForwardArgs, *, plain: bool) -> None:
        if len(self.valid) >= MAX_SHAPES:
            self.valid.clear()
            self.dense.clear()
        self.valid.add(shapes)
        if plain:
            self.dense[args.q.shape, args.k.shape, args.v.shape] = self.backend.dense_op(normal_form(args))

    def backward(self, args: BackwardArgs, tensors: Tensors, into: Gradients | None) -> BackwardResult:
        shapes = shapes_of(args, tensors)
        if shapes not in self.valid:
            check_backward(args)
            if len(self.valid) >= MAX_SHAPES:
                self.valid.clear()
            self.valid.add(shapes)
        return backward(self.backend, args, into)
