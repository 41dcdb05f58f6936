"""`flash_attn.modules.mha`: attention as torch modules, over the functions of `interface.py`.

Parameter names are flash_attn's (Wqkv, or Wq and Wkv, and out_proj), so checkpoints load. ALiBi and attention dropout
in training are refused by the functions; the tensor-parallel module does not exist here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flash_attn3_sm121.errors import CallError
from flash_attn3_sm121.fa2 import interface
from flash_attn3_sm121.fa2.interface import Window
from flash_attn3_sm121.fa2.rotary import RotaryEmbedding


class _Flash(nn.Module):
    """What both flash modules keep."""

    alibi_slopes: Tensor | None

    def __init__(
        self,
        causal: bool = False,
        softmax_scale: float | None = None,
        attention_dropout: float = 0.0,
        window_size: Window = (-1, -1),
        alibi_slopes: Tensor | None = None,
        deterministic: bool = False,
    ) -> None:
        super().__init__()
        self.causal, self.softmax_scale, self.deterministic = causal, softmax_scale, deterministic
        self.window_size = window_size
        self.drop = nn.Dropout(attention_dropout)
        self.register_buffer("alibi_slopes", alibi_slopes, persistent=False)

    def _options(self, causal: bool | None) -> dict[str, Any]:
        return {
            "dropout_p": self.drop.p if self.training else 0.0,
            "softmax_scale": self.softmax_scale,
            "causal": self.causal if causal is None else causal,
            "window_size": self.window_size,
            "alibi_slopes": self.alibi_slopes,
            "deterministic": self.deterministic,
        }


class FlashSelfAttention(_Flash):
    """Attention of (b, s, 3, h, d), or of packed (total, 3, h, d) with cu_seqlens and max_seqlen."""

    def forward(
        self, qkv: Tensor, causal: bool | None = None, cu_seqlens: Tensor | None = None, max_seqlen: int | None = None
    ) -> Any:
        """Returns (b, s, h, d), or (total, h, d). `causal` overrides the module's own."""
        options = self._options(causal)
        if cu_seqlens is None:
            return interface.flash_attn_qkvpacked_func(qkv, **options)
        if max_seqlen is None:
            raise CallError("max_seqlen is needed beside cu_seqlens")
        return interface.flash_attn_varlen_qkvpacked_func(qkv, cu_seqlens, max_seqlen, **options)


class FlashCrossAttention(_Flash):
    """Attention of q (b, sq, h, d) and kv (b, sk, 2, hk, d), or of packed ones with cu_seqlens and lengths of both."""

    def __init__(
        self,
        causal: bool = False,
        softmax_scale: float | None = None,
        attention_dropout: float = 0.0,
        alibi_slopes: Tensor | None = None,
        window_size: Window = (-1, -1),
        deterministic: bool = False,
    ) -> None:
        super().__init__(causal, softmax_scale, attention_dropout, window_size, alibi_slopes, deterministic)

    def forward(
        self,
        q: Tensor,
        kv: Tensor,
        causal: bool | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        cu_seqlens_k: Tensor | None = None,
        max_seqlen_k: int | None = None,
    ) -> Any:
        """Returns (b, sq, h, d), or (total_q, h, d). `causal` overrides the module's own."""
        options = self._options(causal)
        if cu_seqlens is None:
            return interface.flash_attn_kvpacked_func(q, kv, **options)
        if cu_seqlens_k is None or max_seqlen is None or max_seqlen_k is None:
            raise CallError("cu_seqlens_k, max_seqlen and max_seqlen_k are needed beside cu_seqlens")
        return interface.flash_attn_varlen_kvpacked_func(
            q, kv, cu_seqlens, cu_seqlens_k, max_seqlen, max_seqlen_k, **options
        )


class CrossAttention(nn.Module):
    """The same attention by matrix products, with dropout and a key padding mask; memory grows with sq * sk."""

    def __init__(
        self, causal: bool = False, softmax_scale: float | None = None, attention_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.causal, self.softmax_scale = causal, softmax_scale
        self.drop = nn.Dropout(attention_dropout)

    def forward(
        self, q: Tensor, kv: Tensor, causal: bool | None = None, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        """Returns (b, sq, h, d). `key_padding_mask` (b, sk) is True for keys that count."""
        k, v = kv.unbind(dim=2)
        k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
        scale = q.shape[-1] ** -0.5 if self.softmax_scale is None else self.softmax_scale
        scores = torch.einsum("bthd,bshd->bhts", q, k * scale)
        if key_padding_mask is not None:
            scores = scores.masked_fill(~key_padding_mask[:, None, None], -10000.0)
        if self.causal if causal is None else causal:
            rows, columns = torch.arange(q.shape[1], device=q.device), torch.arange(k.shape[1], device=q.device)
            last: int | Tensor = self._last(k.shape[1], key_padding_mask)
            scores = scores.masked_fill(columns > rows[:, None] + last - q.shape[1], -10000.0)
        weights = torch.softmax(scores, dim=-1, dtype=v.dtype)
        return torch.einsum("bhts,bshd->bthd", self.drop(weights), v)

    def _last(self, keys: int, key_padding_mask: Tensor | None) -> int | Tensor:
        """How many keys the last row sees: (b, 1, 1, 1) where a mask shortens them."""
        return keys if key_padding_mask is None else key_padding_mask.sum(-1)[:, None, None, None]


class SelfAttention(CrossAttention):
    """`CrossAttention` of (b, s, 3, h, d). Here padding does not move the diagonal of a causal mask."""

    def forward(  # type: ignore[override]
        self, qkv: Tensor, causal: bool | None = None, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        return super().forward(qkv[:, :, 0], qkv[:, :, 1:], causal, key_padding_mask)

    def _last(self, keys: int, key_padding_mask: Tensor | None) -> int:
        return keys


def _update_kv_cache(kv: Tensor, inference_params: Any, layer_idx: int) -> Tensor:
    """Write kv (b, s, 2, h, d) into the layer's cache, which is made at need; returns what the cache holds by then."""
    caches = inference_params.key_value_memory_dict
    if layer_idx not in caches:
        size = (inference_params.max_batch_size, inference_params.max_seqlen)
        caches[layer_idx] = kv.new_empty(*size, 2, *kv.shape[-2:])
    rows = slice(inference_params.batch_size_offset, inference_params.batch_size_offset + kv.shape[0])
    start, end = inference_params.seqlen_offset, inference_params.seqlen_offset + kv.shape[1]
    cache: Tensor = caches[layer_idx]
    if rows.stop > cache.shape[0] or end > cache.shape[1]:
        raise CallError(f"KV cache overflow: row {rows.stop}, token {end}; its shape is {tuple(cache.shape)}")
    cache[rows, start:end] = kv
    return cache[rows, :end]


class MHA(nn.Module):
    """Multi-head self-attention or cross-attention with its projections, rotary embedding and KV cache.

    The arguments are flash_attn's. `fused_bias_fc` changes nothing, as there. `use_flash_attn=False` takes
    `SelfAttention` and `CrossAttention`, which take a key padding mask; `use_alibi` is refused.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_heads_kv: int | None = None,
        cross_attn: bool = False,
        qkv_proj_bias: bool = True,
        out_proj_bias: bool = True,
        dropout: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        layer_idx: int | None = None,
        dwconv: bool = False,
        rotary_emb_dim: int = 0,
        rotary_emb_base: float = 10000.0,
        rotary_emb_scale_base: float | None = None,
        rotary_emb_interleaved: bool = False,
        use_alibi: bool = False,
        window_size: Window = (-1, -1),
        fused_bias_fc: bool = False,
        use_flash_attn: bool = False,
        return_residual: bool = False,
        checkpointing: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        heads_kv = num_heads if num_heads_kv is None else num_heads_kv
        _check(
            embed_dim, num_heads, heads_kv, use_alibi, tuple(window_size), use_flash_attn, cross_attn, rotary_emb_dim
        )
        self.embed_dim, self.num_heads, self.num_heads_kv = embed_dim, num_heads, heads_kv
        self.head_dim = embed_dim // num_heads
        self.cross_attn, self.causal, self.layer_idx, self.dwconv = cross_attn, causal, layer_idx, dwconv
        self.rotary_emb_dim, self.use_flash_attn = rotary_emb_dim, use_flash_attn
        self.return_residual, self.checkpointing = return_residual, checkpointing
        if rotary_emb_dim > 0:
            self.rotary_emb = RotaryEmbedding(
                rotary_emb_dim, rotary_emb_base, rotary_emb_interleaved, rotary_emb_scale_base, device
            )
        kv_dim = 2 * self.head_dim * heads_kv
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        if cross_attn:
            self.Wq = nn.Linear(embed_dim, embed_dim, bias=qkv_proj_bias, **made)
            self.Wkv = nn.Linear(embed_dim, kv_dim, bias=qkv_proj_bias, **made)
        else:
            self.Wqkv = nn.Linear(embed_dim, embed_dim + kv_dim, bias=qkv_proj_bias, **made)
        if dwconv and heads_kv == num_heads:
            self.dwconv_qkv = _depthwise(embed_dim + kv_dim)
        elif dwconv:
            self.dwconv_q, self.dwconv_kv = _depthwise(embed_dim), _depthwise(kv_dim)
        plain: dict[str, Any] = {"causal": causal, "softmax_scale": softmax_scale, "attention_dropout": dropout}
        self.inner_attn: nn.Module
        self.inner_cross_attn: nn.Module
        if use_flash_attn:
            self.inner_attn = FlashSelfAttention(window_size=window_size, **plain)
            self.inner_cross_attn = FlashCrossAttention(window_size=window_size, **plain)
        else:
            self.inner_attn, self.inner_cross_attn = SelfAttention(**plain), CrossAttention(**plain)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=out_proj_bias, **made)

    def allocate_inference_cache(self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None) -> Tensor:
        """An empty cache (batch_size, max_seqlen, 2, hk, d) for `inference_params.key_value_memory_dict`."""
        weight = self.out_proj.weight
        size = (batch_size, max_seqlen, 2, self.num_heads_kv, self.head_dim)
        return torch.empty(size, dtype=dtype or weight.dtype, device=weight.device)

    def forward(
        self,
        x: Tensor,
        x_kv: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        mixer_subset: Any = None,
        inference_params: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Project, rotate, attend, project.

        Args:
            x: (b, s, embed_dim), or packed (total, embed_dim) with cu_seqlens and max_seqlen.
            x_kv: where keys and values come from, in cross-attention; None: from x.
            key_padding_mask: (b, s), True for keys that count; without flash attention only.
            mixer_subset: which of x's tokens are queries, in cross-attention.
            inference_params: flash_attn's object with seqlen_offset, max_seqlen and the caches.

        Returns:
            A tensor of x's shape, or with `return_residual` (that tensor, x).
        """
        if cu_seqlens is not None and (not self.use_flash_attn or self.rotary_emb_dim or self.dwconv):
            raise CallError("cu_seqlens needs use_flash_attn, and neither rotary_emb_dim nor dwconv")
        if key_padding_mask is not None and self.use_flash_attn:
            raise CallError("key_padding_mask needs use_flash_attn=False; pack the tokens and pass cu_seqlens instead")
        q, kv, qkv = self._projected(x, x_kv, mixer_subset)
        if inference_params is not None:
            context = self._with_cache(q, kv, inference_params)
        else:
            if self.rotary_emb_dim > 0:
                q, kv = self.rotary_emb(q, kv)
            options = {"key_padding_mask": key_padding_mask, **kwargs}
            if self.use_flash_attn:
                options = {"cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen, **kwargs}
            inner, inputs = (self.inner_cross_attn, (q, kv)) if qkv is None else (self.inner_attn, (qkv,))
            if self.checkpointing:
                context = checkpoint(inner, *inputs, use_reentrant=False, **options)
            else:
                context = inner(*inputs, **options)
        out = self.out_proj(context.flatten(-2))
        return (out, x) if self.return_residual else out

    def _projected(self, x: Tensor, x_kv: Tensor | None, subset: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """q (..., h, d) and kv (..., 2, hk, d); and the tensor that both are views of, where it is (..., 3, h, d)."""
        d = self.head_dim
        if self.cross_attn:
            q, kv = self.Wq(x if subset is None else x[:, subset]), self.Wkv(x if x_kv is None else x_kv)
        else:
            joined = self.Wqkv(x)
            if self.num_heads_kv == self.num_heads:
                if self.dwconv:
                    joined = _convolved(self.dwconv_qkv, joined)
                qkv = joined.unflatten(-1, (3, self.num_heads, d))
                return qkv[..., 0, :, :], qkv[..., 1:, :, :], qkv
            q, kv = joined[..., : self.embed_dim], joined[..., self.embed_dim :]
        if self.dwconv:
            q, kv = _convolved(self.dwconv_q, q), _convolved(self.dwconv_kv, kv)
        return q.unflatten(-1, (self.num_heads, d)), kv.unflatten(-1, (2, self.num_heads_kv, d)), None

    def _with_cache(self, q: Tensor, kv: Tensor, params: Any) -> Any:
        """Write the new keys and values into the layer's cache and attend to all of it."""
        if self.layer_idx is None or self.dwconv:
            raise CallError("generation needs layer_idx in MHA's constructor, and no dwconv")
        lengths = params.seqlen_offset if params.lengths_per_sample is None else params.lengths_per_sample
        fused = self.use_flash_attn and params.seqlen_offset > 0
        rotary = self.rotary_emb if self.rotary_emb_dim > 0 else None
        in_kernel = fused and rotary is not None and rotary.dim % 16 == 0 and rotary.scale is None
        if rotary is not None and not in_kernel:
            q, kv = rotary(q, kv, seqlen_offset=lengths, max_seqlen=params.max_seqlen)
        if not fused:
            return self.inner_cross_attn(q, _update_kv_cache(kv, params, self.layer_idx))
        tables: dict[str, Any] = {}
        if in_kernel:
            assert rotary is not None
            rotary._update_cos_sin_cache(params.max_seqlen, device=q.device, dtype=q.dtype)
            tables = {"rotary_cos": rotary._cos_cached, "rotary_sin": rotary._sin_cached}
            tables["rotary_interleaved"] = rotary.interleaved
        cache = params.key_value_memory_dict[self.layer_idx][: q.shape[0]]
        return interface.flash_attn_with_kvcache(
            q,
            cache[:, :, 0],
            cache[:, :, 1],
            kv[:, :, 0],
            kv[:, :, 1],
            cache_seqlens=lengths if isinstance(lengths, int) else lengths[: q.shape[0]],
            softmax_scale=self.inner_cross_attn.softmax_scale,  # type: ignore[arg-type]
            causal=self.causal,
            window_size=self.inner_cross_attn.window_size,  # type: ignore[arg-type]
            **tables,
        )


def _check(
    embed_dim: int, heads: int, heads_kv: int, alibi: bool, window: tuple[int, ...], flash: bool, cross: bool, dim: int
) -> None:
    """Refuse what cannot be built."""
    if embed_dim % heads or heads % heads_kv:
        raise CallError(f"{heads} heads do not divide embed_dim {embed_dim}, or {heads_kv} heads do not divide them")
    if alibi:
        raise CallError("use_alibi is refused: FlashAttention-3, which serves flash_attn here, has no ALiBi")
    if window != (-1, -1) and not flash:
        raise CallError("window_size needs use_flash_attn")
    if cross and dim > 0:
        raise CallError("rotary_emb_dim and cross_attn do not go together")


def _depthwise(channels: int) -> nn.Conv1d:
    return nn.Conv1d(channels, channels, kernel_size=3, padding=2, groups=channels)


def _convolved(convolution: nn.Conv1d, x: Tensor) -> Tensor:
    """Along the tokens of (b, s, channels); a token sees itself and the two before."""
    convolved: Tensor = convolution(x.transpose(1, 2))
    return convolved[..., :-2].transpose(1, 2).contiguous()
