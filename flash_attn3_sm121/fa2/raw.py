"""The functions of FlashAttention-2's extension, `flash_attn_2_cuda`: positional arguments, lists of tensors.

xformers, TransformerEngine and Unsloth reach for these, as `flash_attn_2_cuda` or as `flash_attn_gpu`. The private
functions of `interface.py` stand on them too. Nothing here is differentiable by autograd; that is the callers' work.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flash_attn3_sm121.api.kvcache import flash_attn_with_kvcache
from flash_attn3_sm121.api.private import _flash_attn_backward, _flash_attn_forward
from flash_attn3_sm121.errors import CallError


def refuse(dropout_p: float, alibi_slopes: Tensor | None) -> None:
    """Say which of FlashAttention-2's features there is not here.

    Raises:
        CallError: the call asks for dropout or for ALiBi, which FlashAttention-3 does not have.
    """
    if dropout_p:
        raise CallError(
            f"dropout_p is {dropout_p}, expected 0: FlashAttention-3, which serves flash_attn here, has no dropout",
            hint="set the model's attention dropout to 0, or call model.eval() where it is not trained",
        )
    if alibi_slopes is not None:
        raise CallError(
            "alibi_slopes were given, expected None: FlashAttention-3, which serves flash_attn here, has no ALiBi",
            hint='use the program\'s own attention for this model (transformers: attn_implementation="sdpa")',
        )


def last_contiguous(tensor: Tensor) -> Tensor:
    """The tensor, copied if its last dimension is not contiguous. Validation names what is no dense tensor."""
    dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_nested
    return tensor.contiguous() if dense and tensor.dim() and tensor.stride(-1) != 1 else tensor


def parts(name: str, packed: Tensor, dim: int, count: int) -> tuple[Tensor, ...]:
    """The tensors that stand beside one another in a dimension of a packed one.

    Raises:
        TypeError: it is no tensor.
        CallError: it does not have that dimension, or another number of them.
    """
    if not isinstance(packed, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, found {type(packed).__name__}")
    if packed.is_nested or packed.dim() != dim + 3 or packed.shape[dim] != count:
        found = "a nested tensor" if packed.is_nested else tuple(packed.shape)
        raise CallError(f"{name} must have {dim + 3} dimensions, the one at {dim} of size {count}, found {found}")
    return packed.unbind(dim)


def cap(softcap: float) -> float:
    """FlashAttention-2 reads every softcap that is not positive as none. Validation names what is no number."""
    try:
        return softcap if softcap > 0 else 0.0
    except TypeError:
        return softcap


def fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor | None,
    alibi_slopes: Tensor | None,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    return_softmax: bool,
    generator: object = None,
) -> list[Tensor]:
    """Attention over (b, s, h, d). Returns [out, lse (b, h, sq), an empty tensor, a random state that nobody used]."""
    return varlen_fwd(
        q, k, v, out, None, None, None, None, None, alibi_slopes, None, None, dropout_p, softmax_scale, False, causal,
        window_size_left, window_size_right, softcap, return_softmax,
    )  # fmt: skip


def varlen_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    seqused_k: Tensor | None,
    leftpad_k: Tensor | None,
    block_table: Tensor | None,
    alibi_slopes: Tensor | None,
    max_seqlen_q: int | None,
    max_seqlen_k: int | None,
    dropout_p: float,
    softmax_scale: float,
    zero_tensors: bool,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    return_softmax: bool,
    generator: object = None,
) -> list[Tensor]:
    """Attention over packed sequences, as `fwd`; the lse is (h, total_q).

    With `block_table` (b, pages) k and v are pages (pages, page_size, hk, d), and cu_seqlens_k says only how many keys
    each sequence has.
    """
    refuse(dropout_p, alibi_slopes)
    if block_table is not None and seqused_k is None and cu_seqlens_k is not None:
        seqused_k = cu_seqlens_k.diff()
    found, lse, _, _ = _flash_attn_forward(
        last_contiguous(q),
        last_contiguous(k),
        last_contiguous(v),
        out_=out,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k if block_table is None else None,
        seqused_k=seqused_k,
        leftpad_k=leftpad_k,
        page_table=block_table,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        softmax_scale=softmax_scale,
        causal=causal,
        window_size_left=window_size_left,
        window_size_right=window_size_right,
        softcap=cap(softcap),
    )
    return [found, lse, q.new_empty(0), torch.zeros(2, dtype=torch.int64, device=q.device)]


def bwd(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    alibi_slopes: Tensor | None,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    deterministic: bool,
    generator: object = None,
    rng_state: Tensor | None = None,
) -> list[Tensor]:
    """The backward of `fwd`. Returns [dq, dk, dv, the row sums of dO * O], the first three the caller's if given."""
    return varlen_bwd(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, None, None, alibi_slopes, None, None, dropout_p, softmax_scale,
        False, causal, window_size_left, window_size_right, softcap, deterministic,
    )  # fmt: skip


def varlen_bwd(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    alibi_slopes: Tensor | None,
    max_seqlen_q: int | None,
    max_seqlen_k: int | None,
    dropout_p: float,
    softmax_scale: float,
    zero_tensors: bool,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    deterministic: bool,
    generator: object = None,
    rng_state: Tensor | None = None,
) -> list[Tensor]:
    """The backward of `varlen_fwd` without pages; as `bwd`."""
    refuse(dropout_p, alibi_slopes)
    dout, q, k, v, out = (last_contiguous(tensor) for tensor in (dout, q, k, v, out))
    places = [torch.empty_like(x) if given is None else given for given, x in zip((dq, dk, dv), (q, k, v), strict=True)]
    softmax_d = _flash_attn_backward(
        dout,
        q,
        k,
        v,
        out,
        softmax_lse,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        dq=places[0],
        dk=places[1],
        dv=places[2],
        softmax_scale=softmax_scale,
        is_causal=causal,
        window_size_left=window_size_left,
        window_size_right=window_size_right,
        softcap=cap(softcap),
        deterministic=deterministic,
    )
    return [*places, softmax_d]


def fwd_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    cache_seqlens: int | Tensor | None,
    rotary_cos: Tensor | None,
    rotary_sin: Tensor | None,
    cache_batch_idx: Tensor | None,
    cache_leftpad: Tensor | None,
    block_table: Tensor | None,
    alibi_slopes: Tensor | None,
    out: Tensor | None,
    softmax_scale: float | None,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    rotary_interleaved: bool,
    num_splits: int,
) -> list[Tensor]:
    """Attention over a KV cache, with new keys written into it first. Returns [out, lse (b, h, sq)]."""
    refuse(0.0, alibi_slopes)
    found, lse, *_ = flash_attn_with_kvcache(
        last_contiguous(q),
        k_cache,
        v_cache,
        k if k is None else last_contiguous(k),
        v if v is None else last_contiguous(v),
        rotary_cos=rotary_cos,
        rotary_sin=rotary_sin,
        cache_seqlens=cache_seqlens,
        cache_batch_idx=cache_batch_idx,
        cache_leftpad=cache_leftpad,
        page_table=block_table,
        softmax_scale=softmax_scale,
        causal=causal,
        window_size=(window_size_left, window_size_right),
        softcap=cap(softcap),
        rotary_interleaved=rotary_interleaved,
        num_splits=num_splits,
        return_softmax_lse=True,
    )
    return [found if out is None else out.copy_(found), lse]
