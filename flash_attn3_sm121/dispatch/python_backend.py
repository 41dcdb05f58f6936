"""Backends written in Python (`fallback`, `flex`): what they offer, and how a validated call is run on one."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

from torch import Tensor

from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.dispatch.classes import normalised_window

Gradients = tuple[Tensor, Tensor, Tensor]


class Computes(Protocol):
    """What a backend written in Python offers (`fallback`, `flex`)."""

    def forward(self, args: ForwardArgs) -> tuple[Tensor, Tensor]: ...
    def backward(self, args: BackwardArgs) -> tuple[Tensor, Tensor, Tensor, Tensor | None]: ...
    def short_way(self, args: ForwardArgs) -> Callable[..., Any] | None: ...


@dataclass(kw_only=True, slots=True)
class BackwardResult:
    """The gradients. `softmax_d` (rowsum of dO * O) only where a kernel happened to compute it."""

    dq: Tensor
    dk: Tensor
    dv: Tensor
    ds_aux: Tensor | None = None
    softmax_d: Tensor | None = None


def load(name: str) -> Computes:
    """The backend's module, imported when it is first needed."""
    module = {"sdpa": "flash_attn3_sm121.fallback", "flex": "flash_attn3_sm121.flex"}[name]
    return cast(Computes, importlib.import_module(module))


def forward(backend: Computes, args: ForwardArgs) -> tuple[Tensor, Tensor, None, None]:
    """Run a validated call; `args.out` gets the result where it is given."""
    args.window_left, args.window_right = normalised_window(args)
    out, lse = backend.forward(args)
    if args.out is not None and out is not args.out:
        out = args.out.copy_(out)
    return out, lse, None, None


def backward(backend: Computes, args: BackwardArgs, into: Gradients | None) -> BackwardResult:
    """The same for gradients, which end in `into` where it is given."""
    args.window_left, args.window_right = normalised_window(args)
    dq, dk, dv, ds_aux = backend.backward(args)
    if into is not None:
        for mine, new in zip(into, (dq, dk, dv), strict=True):
            mine.copy_(new)
        dq, dk, dv = into
    return BackwardResult(dq=dq, dk=dk, dv=dv, ds_aux=ds_aux)
