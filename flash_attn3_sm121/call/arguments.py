"""What a backend is asked to do: the arguments of one forward or backward call, at the level of upstream's ops.

Shapes have been validated when a backend sees them, `softmax_scale` is a number and the window two plain ints, -1 for
"unlimited". Backends written in Python get the window in its normal form (`normal_form`); kernels normalise it
themselves. Layouts are upstream's: dense (b, s, h, d), packed (total, h, d), paged (pages, page, h, d).

The classes are frozen: `dataclasses.replace` makes changed copies. The type checker alone holds that. At run time a
frozen dataclass sets every field through object.__setattr__, and that costs a call more than all the rest of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from typing_extensions import dataclass_transform

if TYPE_CHECKING:
    from torch import Tensor

_Class = TypeVar("_Class")
_Call = TypeVar("_Call", "ForwardArgs", "BackwardArgs")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def _arguments(cls: type[_Class]) -> type[_Class]:
    return dataclass(kw_only=True, slots=True)(cls)


@_arguments
class ForwardArgs:
    """One forward call. Every field beside q, k, v and the scale may be absent, as in upstream's `fwd` op."""

    q: Tensor
    k: Tensor
    v: Tensor
    softmax_scale: float
    causal: bool = False
    window_left: int = -1
    window_right: int = -1
    attention_chunk: int = 0
    softcap: float = 0.0
    k_new: Tensor | None = None
    v_new: Tensor | None = None
    qv: Tensor | None = None
    out: Tensor | None = None
    cu_seqlens_q: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    cu_seqlens_k_new: Tensor | None = None
    seqused_q: Tensor | None = None
    seqused_k: Tensor | None = None
    max_seqlen_q: int | None = None
    max_seqlen_k: int | None = None
    page_table: Tensor | None = None
    kv_batch_idx: Tensor | None = None
    leftpad_k: Tensor | None = None
    rotary_cos: Tensor | None = None
    rotary_sin: Tensor | None = None
    seqlens_rotary: Tensor | None = None
    rotary_interleaved: bool = True
    q_descale: Tensor | None = None
    k_descale: Tensor | None = None
    v_descale: Tensor | None = None
    s_aux: Tensor | None = None
    # These change speed only; a backend without the notion ignores them.
    scheduler_metadata: Tensor | None = None
    num_splits: int = 1
    pack_gqa: bool | None = None
    sm_margin: int = 0


@_arguments
class BackwardArgs:
    """One backward call. `dlse` is the gradient of the LSE where a caller differentiates it."""

    dout: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    softmax_lse: Tensor
    softmax_scale: float
    dlse: Tensor | None = None
    causal: bool = False
    window_left: int = -1
    window_right: int = -1
    attention_chunk: int = 0
    softcap: float = 0.0
    qv: Tensor | None = None
    cu_seqlens_q: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    seqused_q: Tensor | None = None
    seqused_k: Tensor | None = None
    max_seqlen_q: int | None = None
    max_seqlen_k: int | None = None
    s_aux: Tensor | None = None
    deterministic: bool = False
    sm_margin: int = 0


def normal_form(args: _Call) -> _Call:
    """The same call with upstream's normal form of the window.

    A side that can hide nothing becomes -1, and the right one 0 where the call is causal.
    """
    table = args.page_table if isinstance(args, ForwardArgs) else None
    capacity = args.max_seqlen_k if args.cu_seqlens_k is not None else args.k.shape[1]
    if table is not None:
        capacity = table.shape[1] * args.k.shape[1]
    length = args.max_seqlen_q if args.cu_seqlens_q is not None else args.q.shape[1]
    assert capacity is not None and length is not None  # validated
    left, right = args.window_left, args.window_right
    left = -1 if left < 0 or left >= capacity - 1 else left
    right = 0 if args.causal else -1 if right < 0 or right >= length - 1 else right
    if (left, right) == (args.window_left, args.window_right):
        return args
    return replace(args, window_left=left, window_right=right)


def default_scale(q: Tensor, qv: Tensor | None = None) -> float:
    """One over the root of q's width, with that of `qv` counted in. No width is refused by validation."""
    width = q.shape[-1] + (0 if qv is None else qv.shape[-1])
    scale: float = width**-0.5 if width else 1.0
    return scale
