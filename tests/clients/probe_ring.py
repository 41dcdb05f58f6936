"""Run inside an environment with the real ring-flash-attn: two processes share a sequence, and one has all of it.

Nothing is faked; bf16, because its buffers alias each other in fp32. Its functions stand on `_flash_attn_forward`,
`_flash_attn_varlen_forward` and their backwards. The last line of output is a JSON object: the largest difference of
outputs and gradients, for each of its functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ring_flash_attn as ring
import torch
from flash_attn import flash_attn_qkvpacked_func, flash_attn_varlen_qkvpacked_func
from ranks import WORLD, Differences, print_largest
from torch import Tensor

HEADS, DIM = 4, 16
BOUNDS = torch.tensor([0, 12, 28, 48], dtype=torch.int32)


def zigzag(x: Tensor, rank: int, dim: int) -> Tensor:
    """A rank's part: one piece from the front and its counterpart from the end, so that causal work is even."""
    pieces = x.chunk(2 * WORLD, dim=dim)
    return torch.cat((pieces[rank], pieces[2 * WORLD - 1 - rank]), dim=dim)


def striped(x: Tensor, rank: int, dim: int) -> Tensor:
    return x.unflatten(dim, (-1, WORLD)).select(dim + 1, rank)


def plain(x: Tensor, rank: int, dim: int) -> Tensor:
    return x.chunk(WORLD, dim=dim)[rank]


def by_sequence(part: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The part of each packed sequence, one behind the other."""
    lengths = BOUNDS.diff().tolist()
    return lambda x, rank, dim: torch.cat([part(piece, rank, dim) for piece in x.split(lengths, dim=dim)], dim=dim)


def compared(part: Callable[..., Tensor], dim: int, alone: Any, together: Any, rank: int) -> float:
    """The largest difference between a rank's results and the same rows of one process' own, gradients included."""
    torch.manual_seed(3)
    qkv = torch.randn(*((2, 48) if dim else (48,)), 3, HEADS, DIM, dtype=torch.bfloat16, requires_grad=True)
    dout = torch.randn(*qkv.shape[: dim + 1], HEADS, DIM, dtype=torch.bfloat16)
    whole = alone(qkv)
    (right,) = torch.autograd.grad(whole, qkv, dout)
    mine = part(qkv.detach(), rank, dim).contiguous().requires_grad_()
    out = together(mine)
    (found,) = torch.autograd.grad(out, mine, part(dout, rank, dim).contiguous())
    pairs = ((out, part(whole, rank, dim)), (found, part(right, rank, dim)))
    return max(float((a - b).abs().max()) for a, b in pairs)


def work(rank: int) -> Differences:
    local = BOUNDS // WORLD
    longest = int(local.diff().max())

    def dense(qkv: Tensor) -> Any:
        return flash_attn_qkvpacked_func(qkv, causal=True)

    def packed(qkv: Tensor) -> Any:
        return flash_attn_varlen_qkvpacked_func(qkv, BOUNDS, int(BOUNDS.diff().max()), causal=True)

    *arguments, piece = ring.llama3_flash_attn_prepare_cu_seqlens(BOUNDS, True, rank, WORLD)
    cases: dict[str, tuple[Any, ...]] = {
        "ring": (plain, 1, dense, lambda x: ring.ring_flash_attn_qkvpacked_func(x, causal=True)),
        "zigzag": (zigzag, 1, dense, lambda x: ring.zigzag_ring_flash_attn_qkvpacked_func(x, causal=True)),
        "stripe": (striped, 1, dense, lambda x: ring.stripe_flash_attn_qkvpacked_func(x, causal=True)),
        "ring_varlen": (
            by_sequence(plain), 0, packed,
            lambda x: ring.ring_flash_attn_varlen_qkvpacked_func(x, local, longest, causal=True),
        ),
        "zigzag_varlen": (
            by_sequence(zigzag), 0, packed,
            lambda x: ring.zigzag_ring_flash_attn_varlen_qkvpacked_func(x, local, longest, causal=True),
        ),
        "llama3": (
            plain, 0, packed,
            lambda x: ring.llama3_flash_attn_varlen_qkvpacked_func(
                x, *arguments, heads_k_stride=1, local_k_slice=piece, causal=True
            ),
        ),
    }  # fmt: skip
    return {name: compared(*case, rank) for name, case in cases.items()}


if __name__ == "__main__":
    print_largest(work)
