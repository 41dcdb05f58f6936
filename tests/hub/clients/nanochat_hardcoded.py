"""The way of nanochat at the time of the GB10 report: the kernel asked for at import, no check, no try."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from kernels import get_kernel

flash_attn = get_kernel("varunneal/flash-attention-3").flash_attn_interface


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    y = flash_attn.flash_attn_func(q, k, v, causal=True)
    return y.contiguous().view(*y.shape[:2], -1)


def main() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 6, 4, 64, requires_grad=True) for _ in range(3))
    y = attention(q, k, v)
    y.sum().backward()
    heads = [x.detach().transpose(1, 2) for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).reshape(2, 6, -1)
    torch.testing.assert_close(y.detach(), expected)
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (q, k, v))

    # On a CPU the model is fp32 and its cache bf16; the prompt fills exactly its slots, then one token at a time.
    with torch.no_grad():
        cache_k, cache_v = (torch.zeros(1, 2, 8, 4, 64, dtype=torch.bfloat16)[0] for _ in range(2))
        seen = torch.zeros(2, dtype=torch.int32)
        for start, stop in ((0, 5), (5, 6)):
            part = slice(start, stop)
            out = flash_attn.flash_attn_with_kvcache(
                q[:, part], cache_k, cache_v, k=k[:, part], v=v[:, part], cache_seqlens=seen, causal=True
            )
            seen += stop - start
            assert out.dtype == q.dtype
            torch.testing.assert_close(out.reshape(2, stop - start, -1), expected[:, part], rtol=2e-2, atol=2e-2)
    print("nanochat ok")


if __name__ == "__main__":
    main()
