"""`flash_attn.layers.rotary` and `flash_attn.ops.triton.rotary`: rotary position embeddings in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flash_attn3_sm121.errors import CallError
from flash_attn3_sm121.fallback.rotary import turn

Offsets = int | Tensor


def _positions(x: Tensor, offsets: Offsets, cu_seqlens: Tensor | None) -> Tensor:
    """The position of every token of x: (s,), (b, s), or (total,) for packed sequences."""
    if cu_seqlens is None:
        steps = torch.arange(x.shape[1], device=x.device)
        return steps + (offsets[:, None] if isinstance(offsets, Tensor) else offsets)
    steps = torch.arange(x.shape[0], device=x.device)
    row = torch.bucketize(steps, cu_seqlens[1:], right=True)
    steps = steps - cu_seqlens[row]
    return steps + (offsets[row] if isinstance(offsets, Tensor) else offsets)


def apply_rotary(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    seqlen_offsets: Offsets = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    interleaved: bool = False,
    inplace: bool = False,
    conjugate: bool = False,
) -> Tensor:
    """Rotate the first dimensions of every head by its token's position.

    Args:
        x: (b, s, h, d), or (total, h, d) with cu_seqlens.
        cos, sin: (positions, rotary_dim / 2).
        seqlen_offsets: the position of each sequence's first token, (b,) or one number.
        cu_seqlens: (b + 1,), where packed sequences start.
        max_seqlen: of no use here.
        interleaved: whether pairs are neighbours (0 and 1) or halves apart (0 and rotary_dim / 2).
        inplace: whether x itself is written to.
        conjugate: whether to rotate backwards.

    Returns:
        The rotated tensor, x itself if `inplace`. The arithmetic is in fp32.

    Raises:
        CallError: the tables are shorter than the sequences or wider than a head.
    """
    half = cos.shape[-1]
    if 2 * half > x.shape[-1]:
        raise CallError(f"rotary_dim must be <= headdim: {2 * half} and {x.shape[-1]}")
    if cu_seqlens is None and isinstance(seqlen_offsets, int) and x.shape[1] + seqlen_offsets > cos.shape[0]:
        raise CallError(f"rotary tables have {cos.shape[0]} positions, and {x.shape[1] + seqlen_offsets} are needed")
    at = _positions(x, seqlen_offsets, cu_seqlens)
    c, s = cos[at].float().unsqueeze(-2), sin[at].float().unsqueeze(-2)
    if conjugate:
        s = -s
    rotated = turn(x[..., : 2 * half].float(), c, s, interleaved=interleaved).to(x.dtype)
    if inplace:
        # Inside somebody's autograd function this stands for a kernel, whose writes autograd does not count either.
        (x if torch.is_grad_enabled() else x.data)[..., : 2 * half] = rotated
        return x
    return torch.cat((rotated, x[..., 2 * half :]), dim=-1)


def apply_rotary_emb_torch(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """`apply_rotary` for (b, s, h, d), from position 0; cos and sin have exactly s positions."""
    return apply_rotary(x, cos, sin, interleaved=interleaved)


def apply_rotary_emb(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: Offsets = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
) -> Tensor:
    """`apply_rotary` with the arguments in another order; differentiable in x."""
    return apply_rotary(x, cos, sin, seqlen_offsets, cu_seqlens, max_seqlen, interleaved, inplace)


apply_rotary_emb_func = apply_rotary_emb


def apply_rotary_emb_qkv_(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    cos_k: Tensor | None = None,
    sin_k: Tensor | None = None,
    interleaved: bool = False,
    seqlen_offsets: Offsets = 0,
    num_heads_q: int | None = None,
) -> Tensor:
    """Rotate queries and keys of (b, s, 3, h, d), or of (b, s, num_heads_q + 2 * hk, d), in place; returns it."""
    if qkv.dim() == 5:
        q, k = qkv[:, :, 0], qkv[:, :, 1]
    elif num_heads_q is not None:
        heads_k = (qkv.shape[2] - num_heads_q) // 2
        q, k = qkv[:, :, :num_heads_q], qkv[:, :, num_heads_q : num_heads_q + heads_k]
    else:
        raise CallError(f"num_heads_q is needed to tell queries from keys in a qkv of shape {tuple(qkv.shape)}")
    apply_rotary(q, cos, sin, seqlen_offsets, interleaved=interleaved, inplace=True)
    cos_k, sin_k = cos if cos_k is None else cos_k, sin if sin_k is None else sin_k
    apply_rotary(k, cos_k, sin_k, seqlen_offsets, interleaved=interleaved, inplace=True)
    return qkv


def apply_rotary_emb_kv_(
    kv: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, seqlen_offsets: Offsets = 0
) -> Tensor:
    """Rotate the keys of (b, s, 2, hk, d) in place; returns it."""
    apply_rotary(kv[:, :, 0], cos, sin, seqlen_offsets, interleaved=interleaved, inplace=True)
    return kv


class RotaryEmbedding(nn.Module):
    """Tables of cosines and sines, made as long as they are needed, and their use on qkv in place.

    Args:
        dim: how many dimensions of a head are rotated.
        base: of the wave lengths.
        interleaved: as in `apply_rotary`.
        scale_base: if given, xPos: queries grow and keys shrink with their position, by this base.
        device: where the frequencies lie.
    """

    inv_freq: Tensor
    scale: Tensor | None

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        interleaved: bool = False,
        scale_base: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.base, self.interleaved, self.scale_base = dim, float(base), interleaved, scale_base
        self.register_buffer("inv_freq", self._compute_inv_freq(device), persistent=False)
        even = torch.arange(0, dim, 2, device=device, dtype=torch.float32)
        scale = None if scale_base is None else (even + 0.4 * dim) / (1.4 * dim)
        self.register_buffer("scale", scale, persistent=False)
        self._seq_len_cached = 0
        self._cos_cached: Tensor | None = None
        self._sin_cached: Tensor | None = None
        self._cos_k_cached: Tensor | None = None
        self._sin_k_cached: Tensor | None = None

    def _compute_inv_freq(self, device: torch.device | str | None = None) -> Tensor:
        even = torch.arange(0, self.dim, 2, device=device, dtype=torch.float32)
        return 1.0 / (self.base ** (even / self.dim))

    def _update_cos_sin_cache(
        self, seqlen: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Have tables of at least `seqlen` positions on that device and in that dtype."""
        have = self._cos_cached
        if (
            have is not None
            and seqlen <= self._seq_len_cached
            and (have.device, have.dtype) == (device, dtype)
            and not (self.training and have.is_inference())
        ):
            return
        self._seq_len_cached = seqlen
        # In fp32 whatever the model's dtype: positions and frequencies lose too much in bf16.
        frequencies = self.inv_freq if self.inv_freq.dtype == torch.float32 else self._compute_inv_freq(device)
        angles = torch.outer(torch.arange(seqlen, device=device, dtype=torch.float32), frequencies.to(device))
        cos, sin = angles.cos(), angles.sin()
        if self.scale is None:
            self._cos_cached, self._sin_cached = cos.to(dtype), sin.to(dtype)
            return
        assert self.scale_base is not None
        power = (torch.arange(seqlen, device=device, dtype=torch.float32) - seqlen // 2) / self.scale_base
        growth = self.scale.to(angles) ** power[:, None]
        self._cos_cached, self._sin_cached = (cos * growth).to(dtype), (sin * growth).to(dtype)
        self._cos_k_cached, self._sin_k_cached = (cos / growth).to(dtype), (sin / growth).to(dtype)

    def forward(
        self,
        qkv: Tensor,
        kv: Tensor | None = None,
        seqlen_offset: Offsets = 0,
        max_seqlen: int | None = None,
        num_heads_q: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Rotate qkv, or q and kv, in place.

        Args:
            qkv: as in `apply_rotary_emb_qkv_`, or where kv is given the queries (b, s, h, d).
            kv: (b, s, 2, hk, d).
            seqlen_offset: the position of the first token, (b,) or one number.
            max_seqlen: how long the tables must be at least; needed where seqlen_offset is a tensor.
            num_heads_q: as in `apply_rotary_emb_qkv_`.

        Returns:
            qkv, or (q, kv).
        """
        if max_seqlen is not None:
            self._update_cos_sin_cache(max_seqlen, device=qkv.device, dtype=qkv.dtype)
        elif isinstance(seqlen_offset, int):
            self._update_cos_sin_cache(qkv.shape[1] + seqlen_offset, device=qkv.device, dtype=qkv.dtype)
        cos, sin = self._cos_cached, self._sin_cached
        if cos is None or sin is None:
            raise CallError("max_seqlen is needed where seqlen_offset is a tensor and no table has been made yet")
        cos_k, sin_k = (cos, sin) if self.scale is None else (self._cos_k_cached, self._sin_k_cached)
        assert cos_k is not None and sin_k is not None
        if kv is None:
            return apply_rotary_emb_qkv_(qkv, cos, sin, cos_k, sin_k, self.interleaved, seqlen_offset, num_heads_q)
        q = apply_rotary_emb(qkv, cos, sin, self.interleaved, inplace=True, seqlen_offsets=seqlen_offset)
        return q, apply_rotary_emb_kv_(kv, cos_k, sin_k, self.interleaved, seqlen_offset)
