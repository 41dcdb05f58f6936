"""What a backend is asked to do: the arguments of one forward or backward call, at the level of upstream's ops.

The public functions validate and normalise first; a backend may rely on that (shapes agree, head counts divide,
`softmax_scale` is a number, windows are plain ints with -1 for "unlimited", `causal` already folded into
`window_right == 0`). Layouts are upstream's: dense (b, s, h, d), packed (total, h, d), paged (pages, page, h, d).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(kw_only=True, slots=True)
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


@dataclass(kw_only=True, slots=True)
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
