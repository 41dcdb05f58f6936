"""The way every public function takes: a plain tensor without gradients goes straight to the engine.

Everything else (autograd, torch.compile, export, fake tensors, dispatch modes) goes through the functional ops of
`ops.py`, which say what they return before they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from flash_attn3_sm121.api import eager, ops
from flash_attn3_sm121.call.arguments import ForwardArgs
from flash_attn3_sm121.dispatch.engine import engine

Window = Sequence[int | Tensor | None]
ops.register()


def is_plain(q: Tensor) -> bool:
    """Whether nobody watches: no compiler, no fake or wrapped tensors, no dispatch mode."""
    return (
        not torch.compiler.is_compiling()
        and (type(q) is Tensor or type(q) is torch.nn.Parameter)
        and torch._C._len_torch_dispatch_stack() == 0
        and not q.is_meta
    )


def window_of(window_size: Window) -> tuple[int, int]:
    left, right = window_size
    if isinstance(left, Tensor):
        left = int(left)
    if isinstance(right, Tensor):
        right = int(right)
    return -1 if left is None else left, -1 if right is None else right


def length_of(value: int | Tensor | None, packed: Tensor) -> int | None:
    """A bound as an int. While compiling a tensor has no value yet: the packed length bounds it just as well."""
    if isinstance(value, Tensor):
        return packed.shape[0] if torch.compiler.is_compiling() else int(value)
    return value


def is_autocast(q: Tensor) -> bool:
    return not q.is_meta and torch.is_autocast_enabled(q.device.type)


_Maybe = TypeVar("_Maybe", Tensor, "Tensor | None")


def autocast(tensor: _Maybe) -> _Maybe:
    """What autocast does for scaled_dot_product_attention: fp32 goes down to the autocast dtype."""
    if tensor is None or tensor.dtype != torch.float32:
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))


def default_scale(q: Tensor, qv: Tensor | None) -> float:
    width = int(q.shape[-1]) if qv is None else int(q.shape[-1] + qv.shape[-1])
    return float(width**-0.5)


def functional(args: ForwardArgs, *, deterministic: bool) -> tuple[Tensor, Tensor, None, None]:
    """Through the op that writes nothing but its result; autograd and compilers see what it does."""
    out, lse = torch.ops.flash_attn3_sm121.forward(
        *[deterministic if name == "deterministic" else getattr(args, name) for name in ops.FORWARD_FIELDS]
    )
    return out, lse, None, None


def attend(args: ForwardArgs, *, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Attention without appending; differentiable in q, k, v and s_aux."""
    if not is_plain(args.q):
        return functional(args, deterministic=deterministic)
    if torch.is_grad_enabled():
        wanting = (args.q, args.k, args.v, args.s_aux)
        if any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in wanting):
            way = eager.attend if eager.serves(args) else functional
            return way(args, deterministic=deterministic)
    return engine().forward(args)
