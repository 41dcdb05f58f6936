"""Classes of calls: what the engine remembers a decision by, and upstream's normal form of the window."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor

from flash_attn3_sm121.call import backend as backends
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.native import library

# Fetched in C, in one go: this runs on every call.
FORWARD_TENSORS = operator.attrgetter(*library.FORWARD_TENSORS)
FORWARD_SCALARS = operator.attrgetter(
    "window_left", "window_right", "attention_chunk", "softcap", "num_splits", "causal", "pack_gqa"
)
BACKWARD_TENSORS = operator.attrgetter(*library.BACKWARD_TENSORS)
BACKWARD_SCALARS = operator.attrgetter(
    "causal", "window_left", "window_right", "attention_chunk", "softcap", "deterministic"
)


def class_of(args: ForwardArgs | BackwardArgs, tensors: tuple[Tensor | None, ...], scalars: tuple[Any, ...]) -> Any:
    """What decides: calls of one class share their plan."""
    q = args.q
    types = [t if t is None else t.dtype for t in tensors]
    return (*types, *scalars, q.device, q.size(-1), args.v.size(-1), backends.requested())


def shapes_of(tensors: tuple[Tensor | None, ...], *lengths: int | None) -> Any:
    """All that validation looks at, beside what decides."""
    parts = [None if t is None else (t.shape, t.device) for t in tensors]
    return (*parts, *(length is None for length in lengths))


def normalised_window(args: ForwardArgs | BackwardArgs) -> tuple[int, int]:
    """Upstream's normal form: -1 for a side that cannot cut anything off, 0 on the right where causal."""
    capacity = args.max_seqlen_k if args.cu_seqlens_k is not None else args.k.shape[1]
    if isinstance(args, ForwardArgs) and args.page_table is not None:
        capacity = args.page_table.shape[1] * args.k.shape[1]
    length = args.max_seqlen_q if args.cu_seqlens_q is not None else args.q.shape[1]
    assert capacity is not None and length is not None  # validated
    left, right = args.window_left, args.window_right
    left = -1 if left < 0 or left >= capacity - 1 else left
    right = -1 if right < 0 or right >= length - 1 else right
    return left, 0 if args.causal else right
