"""What every public function needs: how its arguments become plain values, and which way a call takes.

A plain tensor without gradients goes straight to the engine. Everything else (autograd, torch.compile, export, fake
tensors, functorch, dispatch modes) goes through the functional ops of `ops.py`, which say what they return before they
run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from flash_attn3_sm121.api import eager, ops, transforms
from flash_attn3_sm121.call import schemas
from flash_attn3_sm121.call.arguments import ForwardArgs, default_scale
from flash_attn3_sm121.call.types import check_number
from flash_attn3_sm121.dispatch.engine import engine
from flash_attn3_sm121.dispatch.python_backend import Results
from flash_attn3_sm121.errors import CallError

Window = Sequence[int | Tensor | None]
ops.register()

# These run in every call, so they are looked up once.
_is_compiling = torch.compiler.is_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack
_functorch_is_active = torch._C._are_functorch_transforms_active
# Private and cheap; looking each device type up costs ten times as much. Absent, the look-up decides.
_some_autocast = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)


def is_plain(q: Tensor) -> bool:
    """Whether `q` holds numbers and only autograd may be watching: no compiler, functorch, fake tensor or mode."""
    return (
        not _is_compiling()
        and (type(q) is Tensor or type(q) is torch.nn.Parameter)
        and _dispatch_modes() == 0
        and not _functorch_is_active()
        and not q.is_meta
    )


def no_tensor(**arguments: Any) -> TypeError:
    """The error for the first of the named arguments that is no torch.Tensor."""
    name, value = next(item for item in arguments.items() if not isinstance(item[1], Tensor))
    return TypeError(f"{name} must be a torch.Tensor, found {type(value).__name__}")


def window_of(window_size: Window) -> tuple[int, int]:
    """(left, right) of a window as ints; None is -1, "unlimited"."""
    try:
        left, right = window_size
        if type(left) is int and type(right) is int:
            return left, right
        return _side(left), _side(right)
    except (TypeError, ValueError, OverflowError) as error:
        raise CallError(
            f"window_size must be two numbers (left, right), -1 or None for unlimited; found {window_size!r}"
        ) from error


def _side(size: int | Tensor | None) -> int:
    if size is None:
        return -1
    # a symbol, where a tensor is being traced
    value: Any = size.item() if isinstance(size, Tensor) and size.numel() == 1 else size
    if isinstance(value, int | torch.SymInt):
        return value  # type: ignore[return-value]
    if isinstance(value, str) or int(value) != value:
        raise ValueError("a side of a window is a whole number")
    return int(value)


def length_of(value: int | Tensor | None, packed: Tensor) -> int | None:
    """A bound as an int. While compiling a tensor has no value yet: the packed length bounds it just as well."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            shape = tuple(value.shape)
            raise CallError(f"max_seqlen_q or max_seqlen_k must be a whole number, found a tensor of shape {shape}")
        return packed.shape[0] if torch.compiler.is_compiling() else int(value)
    return value


def is_autocast(q: Tensor) -> bool:
    """Whether autocast is on for q's device."""
    return _some_autocast() and not q.is_meta and torch.is_autocast_enabled(q.device.type)


_Maybe = TypeVar("_Maybe", Tensor, "Tensor | None")


def autocast(tensor: _Maybe) -> _Maybe:
    """What autocast does for scaled_dot_product_attention: fp32 goes down to the autocast dtype."""
    if tensor is None or tensor.dtype != torch.float32:
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))


def scale_of(q: Tensor, qv: Tensor | None, softmax_scale: float | None) -> float:
    """The scale of the scores: the caller's, or one over the root of the width of q, with qv counted in.

    Raises:
        CallError: the scale is no number; or 0, which is FlashAttention-2's dropout_p in this place and hardly ever a
            scale; or q is a nested tensor.
        TypeError: q is no tensor.
    """
    if not isinstance(q, Tensor):
        raise no_tensor(q=q)
    if q.is_nested:
        raise CallError(
            f"q must be a dense tensor, found a nested one ({q.layout})",
            hint="pass the values and offsets of a nested tensor to flash_attn_varlen_func, or the nested tensor to "
            "scaled_dot_product_attention after flash_attn3_sm121.activate()",
        )
    if softmax_scale is None:
        return float(default_scale(q, qv if isinstance(qv, Tensor) else None))
    check_number("softmax_scale", softmax_scale)
    if softmax_scale == 0:
        raise CallError(
            "softmax_scale is 0, so every key would weigh the same. FlashAttention-2 has dropout_p in this place: its "
            "order is (q, k, v, dropout_p, softmax_scale, causal), and here it is (q, k, v, softmax_scale, causal)",
            hint="leave dropout_p out; where equal weights are meant, pass q * 0 and no scale",
        )
    return softmax_scale


def functional(args: ForwardArgs, *, deterministic: bool) -> Results:
    """Through the op that writes nothing but its result; autograd, compilers and functorch see what it does."""
    values = [deterministic if name == "deterministic" else getattr(args, name) for name in schemas.FORWARD_FIELDS]
    out, lse = transforms.attention(*values)
    return out, lse, None, None


def attend(args: ForwardArgs, *, deterministic: bool = False) -> Results:
    """Attention without appending, differentiable in q, k, v and s_aux.

    Args:
        args: the call; nothing in it is written to.
        deterministic: whether the backward must give the same bits each time.

    Returns:
        (out, lse, out_accum, lse_accum); the last two are None unless a native kernel split the keys.
    """
    if not is_plain(args.q):
        return functional(args, deterministic=deterministic)
    if torch.is_grad_enabled():
        wanting = (args.q, args.k, args.v, args.s_aux)
        if any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in wanting):
            through = eager.attend if eager.serves(args) else functional
            return through(args, deterministic=deterministic)
    return engine().forward(args)


def attend_into(args: ForwardArgs, *, deterministic: bool = False) -> tuple[Tensor, Tensor]:
    """(out, lse) of a call; one that writes into `out` has no gradient and cannot be traced."""
    if args.out is None:
        out, lse, *_ = attend(args, deterministic=deterministic)
        return out, lse
    if not is_plain(args.q):
        raise TypeError("flash_attn_varlen_func cannot be traced (torch.compile, export) when it writes into out")
    with torch.no_grad():
        out, lse, *_ = engine().forward(args)
    return out, lse
