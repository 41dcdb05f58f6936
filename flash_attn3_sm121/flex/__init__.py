"""The FlexAttention backend: upstream's calls served by torch's compiled, block-sparse attention.

`refusal(call, device, software())` is pure and imports no torch. `forward` and `backward` compile a kernel on first
use of a shape class (seconds to a minute) and say so on stderr. Masks of every kind (causal, window, chunk, packed
sequences) are row intervals, so block masks are derived from O(T) data and never from a (Tq, Tk) matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_attn3_sm121.flex.refuse import Software, refusal, software

if TYPE_CHECKING:
    from torch import Tensor

    from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs

__all__ = ["Software", "backward", "dense_op", "forward", "refusal", "software"]


def forward(args: ForwardArgs, *, check_cache: bool = True) -> tuple[Tensor, Tensor]:
    """Return (out, lse) in upstream's layouts.

    `check_cache` has no effect, since calls that write into a cache are refused.
    """
    from flash_attn3_sm121.flex import backend

    return backend.forward(args)


def dense_op(args: ForwardArgs) -> None:
    """Return None: no single function of torch serves a call, because a compiled kernel needs its block mask."""


def backward(args: BackwardArgs) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return (dq, dk, dv, None). The forward is run again, since FlexAttention does not give away its saved tensors."""
    from flash_attn3_sm121.flex import backend

    return backend.backward(args)
