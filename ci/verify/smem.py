"""How much shared memory a forward kernel of the mma.sync families asks for, by arithmetic from its tile."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ci.verify import kernels

ALIGNMENT = 128


@dataclass(frozen=True, kw_only=True)
class Tile:
    block_m: int
    block_n: int
    warps: int
    stages: int
    q_in_regs: bool


def _up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def forward_bytes(tile: Tile, head_dim: int, *, split: bool = False, varlen: bool = False) -> int:
    """Bytes of dynamic shared memory, for 16-bit elements.

    Q shares V's place when it is kept in registers. The output reuses the places of V and K, and where it is larger
    than both, the rest is put in front of them as padding. Two bases of the nested structures and the scheduler's
    variables take one alignment unit each.
    """
    q = tile.block_m * head_dim * 2
    kv = tile.block_n * head_dim * 2 * tile.stages
    # Partial results of a split over one length go to memory straight from registers.
    out = 0 if split and not varlen else tile.block_m * head_dim * 2
    padding = max(0, out - 2 * kv)
    main = max(q, kv) + kv if tile.q_in_regs else q + 2 * kv
    tensors = ALIGNMENT + max(_up(padding), ALIGNMENT) + main
    return max(tensors, out) + ALIGNMENT


# Warps, stages, and whether Q is kept in registers: the main loop's first template arguments.
_MAIN_LOOP = re.compile(r"CollectiveMainloopFwdSm80ILi(\d+)ELi(\d+)ELb([01])E")


def of_kernel(mangled: str) -> int | None:
    """Bytes that the launch of a forward mma.sync kernel asks for, from its mangled name; None for any other kernel."""
    shape, loop, variant = kernels.tile(mangled), _MAIN_LOOP.search(mangled), kernels.variant(mangled)
    if shape is None or loop is None or variant is None:
        return None
    tile = Tile(block_m=shape[0], block_n=shape[1], warps=int(loop[1]), stages=int(loop[2]), q_in_regs=loop[3] == "1")
    return forward_bytes(tile, shape[2], split="split" in variant.flags, varlen="varlen" in variant.flags)
