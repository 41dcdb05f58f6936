"""Run inside an environment with the real yunchang: two processes share a sequence, and one has all of it.

Nothing is faked. Ulysses exchanges heads and is causal; its ring with `AttnType.FA3` always asks for causal=False, so
it is compared without a mask. The last line of output is a JSON object: the largest difference of outputs and
gradients, for each.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import yunchang
from flash_attn_interface import flash_attn_func
from ranks import WORLD, Differences, print_largest
from torch import Tensor
from yunchang.kernels import AttnType

HEADS, DIM, LENGTH = 4, 16, 24


def part(x: Tensor, rank: int) -> Tensor:
    return yunchang.basic_extract_local(x, rank, WORLD)


def compared(layer: Any, causal: bool, rank: int) -> float:
    """The largest difference between a rank's results and the same rows of one process' own, gradients included."""
    torch.manual_seed(3)
    given = torch.randn(4, 2, LENGTH, HEADS, DIM, dtype=torch.bfloat16)
    whole = [x.requires_grad_() for x in given[:3].clone()]
    right = flash_attn_func(*whole, causal=causal)
    mine = [part(x, rank).requires_grad_() for x in given[:3]]
    out = layer(*mine, causal=causal)
    wanted = torch.autograd.grad(right, whole, given[3])
    found = torch.autograd.grad(out, mine, part(given[3], rank))
    pairs = zip((out, *found), (right, *wanted), strict=True)
    return max(float((a - part(b, rank)).detach().abs().max()) for a, b in pairs)


def work(rank: int) -> Differences:
    ulysses = yunchang.UlyssesAttention(dist.group.WORLD, attn_type=AttnType.FA3)
    yunchang.set_seq_parallel_pg(1, WORLD, rank, WORLD)
    ring = yunchang.LongContextAttention(ring_impl_type="basic", attn_type=AttnType.FA3)
    return {"ulysses": compared(ulysses, True, rank), "ring": compared(ring, False, rank)}


if __name__ == "__main__":
    print_largest(work)
