"""The complete fallback: everything FlashAttention-3 does, exactly, on plain PyTorch and any device.

`forward` and `backward` take the arguments of one call and return fresh, contiguous results. Arguments are expected
to agree in shape (the public functions validate); what depends on values (lengths, page numbers, capacity) is
checked here, before anything is written into a cache.

How it works: lengths are read on the host where that is free (`host.py`: each sequence gets just the work that its
mask leaves), or stay on the device (`static.py`: the CUDA decoding path, no synchronisation). Masks are cut into pieces
that need little masking (`geometry.py`), pieces go to torch's fused kernel (`pieces.py`), and what that kernel can't
do (softcap, qv, gradients of the LSE) goes through blocked plain arithmetic (`blocked.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from flash_attn3_sm121.call import BackwardArgs, ForwardArgs
from flash_attn3_sm121.fallback import host
from flash_attn3_sm121.fallback.combine import combine

__all__ = ["backward", "combine", "forward"]


def forward(args: ForwardArgs) -> tuple[Tensor, Tensor]:
    """(out, lse): out in q's type (bf16 for fp8), lse fp32; fresh, or written to `args.out`."""
    with torch.no_grad():
        return host.forward(args)


def backward(args: BackwardArgs) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(dq, dk, dv, ds_aux), each in its input's type; ds_aux is None without sinks."""
    with torch.no_grad():
        return host.backward(args)
