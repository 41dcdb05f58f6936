"""functorch (torch.func): vmap, grad and vjp over attention, in any order.

torch does not let functorch differentiate ops that `torch.library.register_autograd` made differentiable, but autograd
functions it does. The two here are the ops `forward` and `backward`, argument for argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flash_attn3_sm121.api import ops


def attention(*values: Any) -> tuple[Tensor, Tensor]:
    """(out, lse) of the op `flash_attn3_sm121::forward` with these arguments, whatever transforms are active."""
    out, lse = _through(_Forward, torch.ops.flash_attn3_sm121.forward, values)
    return out, lse


def _through(function: type[torch.autograd.Function], op: Any, values: Sequence[Any]) -> Any:
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return function.apply(*values)  # type: ignore[no-untyped-call]
    return op(*values)


def _one_by_one(
    function: type[torch.autograd.Function], info: Any, in_dims: Sequence[int | None], values: Sequence[Any]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """vmap: apply the function to every element of the mapped dimension, and stack the results."""
    results = []
    for i in range(info.batch_size):
        pairs = zip(values, in_dims, strict=True)
        element = (value if dim is None else value.select(dim, i) for value, dim in pairs)
        results.append(function.apply(*element))  # type: ignore[no-untyped-call]
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


class _Forward(torch.autograd.Function):
    """Within `forward` one transform less is active, and `_through` applies the next one, or calls the op."""

    @staticmethod
    def forward(*values: Any) -> Any:
        return _through(_Forward, torch.ops.flash_attn3_sm121.forward, values)

    setup_context = staticmethod(ops.setup_context)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> Any:
        return ops.differentiate_through(_gradients, ctx, dout, dlse)

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *values: Any) -> Any:
        return _one_by_one(_Forward, info, in_dims, values)


def _gradients(*values: Any) -> Any:
    return _through(_Backward, torch.ops.flash_attn3_sm121.backward, values)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(*values: Any) -> Any:
        return _gradients(*values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept: there is no second derivative."""

    backward = staticmethod(ops.no_double_backward)

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *values: Any) -> Any:
        return _one_by_one(_Backward, info, in_dims, values)
