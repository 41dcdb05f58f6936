"""A training step through `flash_attn_interface`, as any project that knows FlashAttention-3 writes it.

    python examples/training_step.py

Runs on whatever is at hand: the native kernels on a GPU they fit, the exact fallback elsewhere.
"""

from __future__ import annotations

import torch
from flash_attn_interface import flash_attn_func
from torch import Tensor, nn


class Attention(nn.Module):
    """Grouped-query attention with a sliding window."""

    def __init__(self, width: int, heads: int, kv_heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.window = heads, kv_heads, window
        self.head_dim = width // heads
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * self.head_dim, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, -1, self.head_dim)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        mixed = flash_attn_func(q, k, v, causal=True, window_size=(self.window, 0))
        return self.out(mixed.reshape(batch, length, width))


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Attention(width=256, heads=4, kv_heads=2, window=64).to(device, torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x = torch.randn(2, 256, 256, device=device, dtype=torch.bfloat16)
    target = x.cumsum(dim=1) / torch.arange(1, 257, device=device, dtype=torch.bfloat16)[None, :, None]

    for step in range(10):
        loss = nn.functional.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 3 == 0:
            print(f"step {step}: loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
