"""How close a result has to be to the fp64 reference."""

from __future__ import annotations

import torch
from torch import Tensor

from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs

# Rounding of the result, and of the weights before their product with v; values here are of order one.
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 2e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}
LSE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-5, torch.float16: 1e-4, torch.bfloat16: 1e-4}


def assert_close(found: Tensor, want: Tensor, tolerance: float, what: str) -> None:
    """Equal shapes, equal infinities, no NaN, and differences below tolerance * (1 + |want|)."""
    assert found.shape == want.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(want.shape)}"
    found = found.to(torch.float64)
    assert not found.isnan().any(), f"{what}: NaN"
    infinite = want.isinf() | found.isinf()
    assert torch.equal(found[infinite], want[infinite]), f"{what}: infinities differ"
    difference = (found - want)[~infinite].abs() / (1 + want[~infinite].abs())
    worst = difference.max().item() if difference.numel() else 0.0
    assert worst <= tolerance, f"{what}: off by {worst:.3g}, allowed {tolerance:.3g}"


SHARED = (
    *("softmax_scale", "causal", "window_left", "window_right", "attention_chunk", "softcap", "s_aux"),
    *("cu_seqlens_q", "cu_seqlens_k", "seqused_q", "seqused_k", "max_seqlen_q", "max_seqlen_k"),
)


# Gradients of bf16 and fp16 are sums of rounded terms; fp64 is limited by the LSE, which is kept in fp32.
GRADIENT_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}


def backward_args(
    args: ForwardArgs, out: Tensor, lse: Tensor, dout: Tensor, dlse: Tensor | None = None
) -> BackwardArgs:
    shared = {name: getattr(args, name) for name in SHARED}
    tensors = {"q": args.q, "k": args.k, "v": args.v, "out": out, "softmax_lse": lse, "dout": dout, "dlse": dlse}
    return BackwardArgs(**shared, **tensors)
