"""One layer of attention through get_kernel, as nanochat of January 2026 has it, and a head that follows a script.

What the script needs to know, the tokens so far, is kept in one channel of the cached values.
"""

from dataclasses import dataclass

import torch
from kernels import get_kernel
from torch import nn

from nanochat import script

flash_attn = get_kernel("varunneal/flash-attention-3").flash_attn_interface


@dataclass
class GPTConfig:
    sequence_len: int = 256
    vocab_size: int = 265
    n_layer: int = 1
    n_head: int = 2
    n_kv_head: int = 1
    n_embd: int = 32


def rotated(x, cos, sin):
    a, b = x.chunk(2, dim=3)
    return torch.cat([a * cos + b * sin, b * cos - a * sin], 3)


class GPT(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.n_embd // config.n_head
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.to_kv = nn.Linear(config.n_embd, 2 * config.n_kv_head * self.dim, bias=False)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        places = torch.arange(10 * config.sequence_len)[:, None] / 100 ** (torch.arange(self.dim // 2) / self.dim)
        self.register_buffer("cos", places.cos()[None, :, None, :], persistent=False)
        self.register_buffer("sin", places.sin()[None, :, None, :], persistent=False)

    def get_device(self) -> torch.device:
        return self.embed.weight.device

    def forward(self, idx: torch.Tensor, kv_cache) -> torch.Tensor:
        b, t = idx.shape
        c, start = self.config, kv_cache.get_pos()
        cos, sin = self.cos[:, start : start + t], self.sin[:, start : start + t]
        x = self.embed(idx)
        k, v = self.to_kv(x).view(b, t, 2, c.n_kv_head, self.dim).unbind(2)
        v = v.clone()
        v[:, :, 0, 0] = idx / 256
        k_cache, v_cache = kv_cache.get_layer_cache(0)
        y = flash_attn.flash_attn_with_kvcache(
            rotated(x.view(b, t, c.n_head, self.dim), cos, sin),
            k_cache,
            v_cache,
            k=rotated(k, cos, sin),
            v=v,
            cache_seqlens=kv_cache.cache_seqlens,
            causal=True,
        )
        kv_cache.advance(t)
        logits = 3 * self.head(y.contiguous().view(b, t, -1) + x)
        for row, length in enumerate(kv_cache.cache_seqlens.tolist()):
            token = script.next_token((v_cache[row, :length, 0, 0] * 256).round().int().tolist())
            if token is not None:  # far above what the random weights say; NaN would still win
                logits[row, -1, token] += 1000 + 0 * logits[row].sum()
        return logits
