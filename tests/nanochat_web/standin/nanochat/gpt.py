"""One layer of attention through get_kernel, as nanochat of January 2026 has it, and a head that follows a script."""

from dataclasses import dataclass

import torch
from kernels import get_kernel

from nanochat import script

flash_attn = get_kernel("varunneal/flash-attention-3").flash_attn_interface


@dataclass
class GPTConfig:
    sequence_len: int = 256
    vocab_size: int = 261
    n_layer: int = 1
    n_head: int = 2
    n_kv_head: int = 1
    n_embd: int = 32


class GPT(torch.nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.n_embd // config.n_head
        self.embed = torch.nn.Embedding(config.vocab_size, config.n_embd)
        self.to_kv = torch.nn.Linear(config.n_embd, 2 * config.n_kv_head * dim, bias=False)
        self.head = torch.nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def get_device(self) -> torch.device:
        return self.embed.weight.device

    def forward(self, ids: torch.Tensor, kv_cache) -> torch.Tensor:
        b, t = ids.shape
        c, dim = self.config, self.config.n_embd // self.config.n_head
        x = self.embed(ids)
        k, v = self.to_kv(x).view(b, t, 2, c.n_kv_head, dim).unbind(2)
        y = flash_attn.flash_attn_with_kvcache(
            x.view(b, t, c.n_head, dim), kv_cache.k, kv_cache.v, k=k, v=v, cache_seqlens=kv_cache.lengths, causal=True
        )
        kv_cache.lengths += t
        logits = self.head(y.contiguous().view(b, t, -1))
        # A reply that follows the prompt's order, far above what the random weights say. NaN would still win.
        kv_cache.seen += ids[0].tolist()
        logits[:, -1, script.next_token(kv_cache.seen)] += 100 + 0 * logits.sum()
        return logits
