"""Decoding with a KV cache in which every row has another length, step by step, and paged.

    python examples/ragged_decode.py

The cache is written in place: a step appends its keys and values at the row's length and attends to all of the row.
"""

from __future__ import annotations

import torch
from flash_attn_interface import flash_attn_func, flash_attn_with_kvcache

HEADS, KV_HEADS, DIM, CAPACITY, PAGE = 4, 2, 64, 256, 64


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16
    lengths = torch.tensor([100, 3, 57], dtype=torch.int32, device=device)
    rows = len(lengths)
    k_cache, v_cache = (torch.randn(rows, CAPACITY, KV_HEADS, DIM, device=device, dtype=dtype) for _ in range(2))

    # The same cache in pages: a table says which pages belong to which row. Pages not yet given out may be -1.
    k_pages, v_pages = (cache.view(-1, PAGE, KV_HEADS, DIM).clone() for cache in (k_cache, v_cache))
    table = torch.arange(rows * CAPACITY // PAGE, dtype=torch.int32, device=device).view(rows, -1)

    for step in range(4):
        q = torch.randn(rows, 1, HEADS, DIM, device=device, dtype=dtype)
        k, v = (torch.randn(rows, 1, KV_HEADS, DIM, device=device, dtype=dtype) for _ in range(2))
        plain = flash_attn_with_kvcache(q, k_cache, v_cache, k=k, v=v, cache_seqlens=lengths, causal=True)
        paged = flash_attn_with_kvcache(
            q, k_pages, v_pages, k=k, v=v, cache_seqlens=lengths, page_table=table, causal=True
        )
        lengths = lengths + 1
        gap = (plain - paged).abs().max().item()

        # Each row alone, over the keys it really has: the same numbers.
        row = step % rows
        used = int(lengths[row])
        alone = flash_attn_func(q[row : row + 1], k_cache[row : row + 1, :used], v_cache[row : row + 1, :used])
        off = (alone - plain[row : row + 1]).abs().max().item()
        print(f"step {step}: lengths {lengths.tolist()}, paged differs by {gap:.1e}, row {row} alone by {off:.1e}")
        assert gap < 2e-2 and off < 2e-2


if __name__ == "__main__":
    main()
