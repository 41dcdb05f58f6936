"""How much shared memory a forward kernel of the mma.sync families asks for, by arithmetic from its tile."""

from __future__ import annotations

from dataclasses import dataclass

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
