"""Whether each argument of a call is of a type that it may be, before any two of them are compared."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from flash_attn3_sm121.call import schemas
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.errors import CallError

# What the caller of the public functions calls the fields that the op names otherwise.
CALLED = {
    "k_new": "k (the new keys)",
    "v_new": "v (the new values)",
    "kv_batch_idx": "cache_batch_idx",
    "leftpad_k": "cache_leftpad",
    "seqlens_rotary": "rotary_seqlens",
}
_FA2_ORDER = (
    "FlashAttention-2's order of arguments, with dropout_p and softmax_scale before causal, is not FlashAttention-3's, "
    "which has no dropout_p: name the arguments, softmax_scale=..., causal=..."
)


_NUMBERS = ("softmax_scale", "softcap")
_NUMBER_TYPES = (int, float, torch.SymInt, torch.SymFloat)  # a tuple: torch 2.9 traces no union of types
_WHOLE = ("window_left", "window_right", "attention_chunk", "num_splits", "sm_margin")
_WHOLE_OR_NONE = ("max_seqlen_q", "max_seqlen_k")


def name_of_lengths(args: ForwardArgs) -> str:
    """What the caller calls `seqused_k`."""
    return "seqused_k" if args.cu_seqlens_k is not None else "cache_seqlens"


def check_number(name: str, value: object) -> None:
    """Raises CallError unless the value is a number or, while a compiler traces, stands for one."""
    if not isinstance(value, _NUMBER_TYPES) and not (hasattr(value, "__float__") and _is_single(value)):
        fail(f"{name} must be a number, found {value!r}")


def _is_single(value: object) -> bool:
    """False for a tensor of none or several numbers."""
    return not isinstance(value, Tensor) or value.numel() == 1


def _tensors(args: ForwardArgs | BackwardArgs) -> None:
    """Whether each tensor is one, with numbers that lie in memory at strides."""
    forward = isinstance(args, ForwardArgs)
    required = ("q", "k", "v") if forward else ("q", "k", "v", "dout", "out", "softmax_lse")
    for field in schemas.FORWARD_TENSORS if forward else schemas.BACKWARD_TENSORS:
        tensor = getattr(args, field)
        name = CALLED.get(field, field)
        if field == "seqused_k" and isinstance(args, ForwardArgs):
            name = name_of_lengths(args)
        if tensor is None and field not in required:
            continue
        if not isinstance(tensor, Tensor):
            order = f". {_FA2_ORDER}" if isinstance(tensor, bool | float) else ""
            raise TypeError(f"{name} must be a torch.Tensor, found {type(tensor).__name__}{order}")
        if tensor.layout != torch.strided:
            fail(
                f"{name} must be a dense tensor, found the layout {tensor.layout}",
                hint="pass the values and offsets of a nested tensor to flash_attn_varlen_func"
                if tensor.is_nested
                else f"pass {name}.to_dense()",
            )


def _scalars(args: ForwardArgs | BackwardArgs) -> None:
    """Whether flags and numbers are such; symbolic ones of a compiler are."""
    if args.causal is None or isinstance(args.causal, float) or not hasattr(args.causal, "__bool__"):
        fail(f"causal must be True or False, found {args.causal!r}", hint=_FA2_ORDER)
    for name in _NUMBERS:
        check_number(name, getattr(args, name, 0))
    for name in (*_WHOLE, *_WHOLE_OR_NONE):
        value = getattr(args, name, 0)
        if isinstance(value, int | torch.SymInt) or (value is None and name in _WHOLE_OR_NONE):
            continue
        if not hasattr(value, "__index__") or not _is_single(value):
            fail(f"{name} must be a whole number, found {value!r}")


def check_types(args: ForwardArgs | BackwardArgs) -> None:
    """Raise TypeError for what is no tensor and should be, CallError for other arguments of the wrong type."""
    _scalars(args)
    _tensors(args)


def fail(message: str, hint: str | None = None) -> NoReturn:
    raise CallError(message, hint=hint)
