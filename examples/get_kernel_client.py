"""What nanochat says at import, unmodified: the kernel of the Hugging Face hub, served from this machine.

    flash-attn3 run -- python examples/get_kernel_client.py

Without `flash-attn3 run` the same lines would download a kernel that was not built for a GB10.
"""

from __future__ import annotations

import torch
from kernels import get_kernel

flash_attn = get_kernel("varunneal/flash-attention-3").flash_attn_interface


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = (torch.randn(1, 128, 6, 128, device=device, dtype=torch.bfloat16) for _ in range(3))
    out = flash_attn.flash_attn_func(q, k, v, causal=True)
    print(f"{flash_attn.__name__}: {tuple(out.shape)} {out.dtype} on {out.device}")

    # nanochat's decode: a cache of fp32 or bf16, one new token, lengths as a tensor.
    k_cache, v_cache = (torch.zeros(1, 256, 6, 128, device=device, dtype=torch.bfloat16) for _ in range(2))
    lengths = torch.zeros(1, dtype=torch.int32, device=device)
    step = flash_attn.flash_attn_with_kvcache(
        q[:, :1], k_cache, v_cache, k=k[:, :1], v=v[:, :1], cache_seqlens=lengths, causal=True
    )
    # The first token sees itself alone, so its output is its value.
    assert torch.equal(step, v[:, :1])
    print("decode step: the first token sees only itself")


if __name__ == "__main__":
    main()
