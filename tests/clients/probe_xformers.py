"""Run inside an environment with the real xformers: its two ops, over FlashAttention-2's names and over flash_attn_3.

Faked: the ops, which are registered for CUDA, are registered for the CPU as well. That also leaves out the capability
that the op for FlashAttention-3 asks for, 9.0 at most. The last line of output is JSON.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from xformers.ops import fmha
from xformers.ops.fmha.attn_bias import (
    BlockDiagonalCausalMask,
    BlockDiagonalPaddedKeysMask,
    LowerTriangularMask,
    PagedBlockDiagonalPaddedKeysMask,
)

DIM = 64


def on_cpu(module: Any, *functions: Any) -> tuple[Any, Any]:
    """The forward and backward op of a module of xformers, taken on the CPU too."""
    for function in functions:
        function.register_kernel("cpu")(function._init_fn)
    ops = module.FwOp, module.BwOp
    for op in ops:
        op.SUPPORTED_DEVICES = {"cpu"}
    return ops


def plain(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), **options).transpose(1, 2)


def trained(ops: tuple[Any, Any]) -> dict[str, float]:
    """The largest difference of the output and of the three gradients."""
    *given, dout = torch.randn(4, 1, 24, 4, DIM, dtype=torch.half)
    for leaf in given:
        leaf.requires_grad_()
    lengths = [10, 14]
    apart = torch.cat(
        [plain(*part, is_causal=True) for part in zip(*(x.split(lengths, 1) for x in given), strict=True)], 1
    )
    cases: dict[str, tuple[Tensor, Any]] = {
        "plain": (plain(*given), None),
        "causal": (plain(*given, is_causal=True), LowerTriangularMask()),
        "packed": (apart, BlockDiagonalCausalMask.from_seqlens(lengths)),
    }
    gaps = {}
    for name, (right, bias) in cases.items():
        out = fmha.memory_efficient_attention(*given, attn_bias=bias, op=ops)
        pairs = zip(
            (out, *torch.autograd.grad(out, given, dout)),
            (right, *torch.autograd.grad(right, given, dout)),
            strict=True,
        )
        gaps[name] = max(float((a - b).detach().abs().max()) for a, b in pairs)
    return gaps


def padded(ops: tuple[Any, Any]) -> dict[str, float]:
    """Keys with room behind each sequence, as they are and by a table of pages."""
    q, k, v = (torch.randn(1, length, 4, DIM, dtype=torch.half) for length in (7, 512, 512))
    right = torch.cat((plain(q[:, :3], k[:, :10], v[:, :10]), plain(q[:, 3:], k[:, 256:261], v[:, 256:261])), 1)
    mask = BlockDiagonalPaddedKeysMask.from_seqlens([3, 4], 256, [10, 5])
    table = torch.arange(2, dtype=torch.int32).view(2, 1)
    pages = mask.make_paged(table, page_size=256, paged_type=PagedBlockDiagonalPaddedKeysMask)
    found = {}
    for name, bias in (("padded", mask), ("paged", pages)):
        out = fmha.memory_efficient_attention_forward(q, k, v, attn_bias=bias, op=ops[0])
        found[name] = float((out - right).abs().max())
    return found


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    second = on_cpu(fmha.flash, fmha.flash._flash_fwd, fmha.flash._flash_bwd)
    third = on_cpu(fmha.flash3, fmha.flash3.mha_fwd, fmha.flash3.mha_bwd)
    report = {
        "version": fmha.flash.FLASH_VERSION,
        "newest GPU of its own op": fmha.flash3.FwOp.CUDA_MAXIMUM_COMPUTE_CAPABILITY,
        "flash": trained(second) | padded(second),
        "flash3": trained(third) | padded(third),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
