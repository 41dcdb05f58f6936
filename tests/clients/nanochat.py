"""A GPT of nanochat's shape, written for these tests: rotary, QK norm, GQA, a sliding pattern, and a KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Config:
    layers: int = 4
    heads: int = 4
    heads_kv: int = 2
    head_dim: int = 16
    vocabulary: int = 61
    windows: tuple[tuple[int, int], ...] = ((8, 0), (8, 0), (8, 0), (-1, 0))  # three short layers, one long

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


class Cache:
    """One tensor for all layers, (L, B, T, H, D), and each row's own length."""

    def __init__(self, config: Config, rows: int, capacity: int, dtype: torch.dtype) -> None:
        shape = (config.layers, rows, capacity, config.heads_kv, config.head_dim)
        self.k, self.v = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
        self.lengths = torch.zeros(rows, dtype=torch.int32)


def normalised(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],))


def rotated(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding over halves; positions (b, t)."""
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = positions[..., None, None] * rates
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin()), dim=-1)


class Attention(nn.Module):
    def __init__(self, config: Config, layer: int, flash: Any) -> None:
        super().__init__()
        self.config, self.layer, self.flash = config, layer, flash
        self.window = config.windows[layer % len(config.windows)]
        self.to_q = nn.Linear(config.width, config.heads * config.head_dim, bias=False)
        self.to_k = nn.Linear(config.width, config.heads_kv * config.head_dim, bias=False)
        self.to_v = nn.Linear(config.width, config.heads_kv * config.head_dim, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, cache: Cache | None) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (
            layer(x).view(b, t, heads, self.config.head_dim)
            for layer, heads in (
                (self.to_q, self.config.heads),
                (self.to_k, self.config.heads_kv),
                (self.to_v, self.config.heads_kv),
            )
        )
        start = cache.lengths if cache is not None else torch.zeros(b, dtype=torch.int32)
        positions = start[:, None] + torch.arange(t)
        q, k = normalised(rotated(q, positions)), normalised(rotated(k, positions))
        if cache is None:
            y = self.flash.flash_attn_func(q, k, v, causal=True, window_size=self.window)
        else:
            y = self.flash.flash_attn_with_kvcache(
                q, cache.k[self.layer], cache.v[self.layer], k=k, v=v, cache_seqlens=cache.lengths,
                causal=True, window_size=self.window,
            )  # fmt: skip
        return self.out(y.contiguous().view(b, t, -1))


class GPT(nn.Module):
    def __init__(self, config: Config, flash: Any) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.attention = nn.ModuleList(Attention(config, layer, flash) for layer in range(config.layers))
        self.mlp = nn.ModuleList(
            nn.Sequential(
                nn.Linear(config.width, 2 * config.width), nn.ReLU(), nn.Linear(2 * config.width, config.width)
            )
            for _ in range(config.layers)
        )
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        x = normalised(self.embed(tokens))
        for attention, mlp in zip(self.attention, self.mlp, strict=True):
            x = x + attention(normalised(x), cache)
            x = x + mlp(normalised(x))
        if cache is not None:
            cache.lengths += tokens.shape[1]
        return self.head(normalised(x))
