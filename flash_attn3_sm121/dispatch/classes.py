"""Classes of calls: the key under which the engine remembers what was decided for a call.

Everything that the decision looks at is in the key, and nothing that changes from step to step (shapes, lengths).
`class_of` makes it from a call's arguments. `dense_class` and `decode_class` make the same key for the two kinds of
calls that have a fast path, without a ForwardArgs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor

from flash_attn3_sm121.call import backend as backends
from flash_attn3_sm121.call import schemas
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs

_SCALARS = ("causal", "window_left", "window_right", "attention_chunk", "softcap", "num_splits", "pack_gqa")

# Fetched in C, in one go: this runs on every call.
_forward_tensors = operator.attrgetter(*schemas.FORWARD_TENSORS)
_forward_scalars = operator.attrgetter(*_SCALARS)
_backward_tensors = operator.attrgetter(*schemas.BACKWARD_TENSORS)
_backward_scalars = operator.attrgetter(
    "causal", "window_left", "window_right", "attention_chunk", "softcap", "deterministic"
)


Tensors = tuple["Tensor | None", ...]


def tensors_of(args: ForwardArgs | BackwardArgs) -> Tensors:
    """Every tensor of a call, None where an argument is absent, always in the same order."""
    found: Tensors
    found = _forward_tensors(args) if isinstance(args, ForwardArgs) else _backward_tensors(args)
    return found


def is_readable(tensor: Tensor) -> bool:
    """Whether the last dimension has stride 1, which kernels want of what they read."""
    return tensor.is_contiguous() or tensor.stride(-1) == 1  # the first costs a quarter of the second


def class_of(args: ForwardArgs | BackwardArgs, tensors: Tensors) -> tuple[Any, ...]:
    """The key of a call. Raises AttributeError where an argument is no tensor."""
    forward = isinstance(args, ForwardArgs)
    scalars = _forward_scalars(args) if forward else _backward_scalars(args)
    types = [t if t is None else t.dtype for t in tensors]
    q = args.q
    return (forward, *types, scalars, q.device, q.shape[-1], args.v.shape[-1], backends.requested())


def _class_maker(present: tuple[str, ...], perhaps: tuple[str, ...] = ()) -> Callable[..., tuple[Any, ...]]:
    """A function that makes the key of a forward call from its parts.

    Written out by names, a key takes half the time of one that is put together in loops.

    Args:
        present, perhaps: the fields of ForwardArgs that are tensors in such calls, and those that may be None.

    Returns:
        A function of (*present, *perhaps, dim, scalars): the last size of q, and the values of `_SCALARS` as a tuple.
    """
    types = {name: f"{name}.dtype" for name in present}
    types |= {name: f"None if {name} is None else {name}.dtype" for name in perhaps}
    parts = ", ".join(types.get(name, "None") for name in schemas.FORWARD_TENSORS)
    names = ", ".join((*present, *perhaps, "dim", "scalars"))
    maker: Callable[..., tuple[Any, ...]] = eval(
        f"lambda {names}: (True, {parts}, scalars, q.device, dim, v.shape[-1], requested())",
        {"requested": backends.requested},
    )
    return maker


# The key of a dense call without other tensors.
dense_class = _class_maker(("q", "k", "v"))
# The key of a call over a cache (k, v) that uses no tensors beside these.
decode_class = _class_maker(("q", "k", "v", "seqused_k"), ("k_new", "v_new", "page_table", "kv_batch_idx"))


def shapes_of(args: ForwardArgs | BackwardArgs, tensors: Tensors) -> tuple[Any, ...]:
    """All that validation looks at beyond the key."""
    parts = [None if t is None else (t.shape, t.device, t.layout) for t in tensors]
    return (*parts, args.max_seqlen_q is None, args.max_seqlen_k is None)
