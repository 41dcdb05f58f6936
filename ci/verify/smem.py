"""How much shared memory a forward kernel of the mma.sync families asks for, by arithmetic from its tile."""

from __future__ import annotations

from ci.verify import kernels
from ci.verify.kernels import Tile

ALIGNMENT = 128


def _up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def forward_bytes(tile: Tile, *, split: bool = False, varlen: bool = False) -> int:
    """Bytes of dynamic shared memory, for 16-bit elements.

    Q shares V's place when it is kept in registers. The output reuses the places of V and K, and where it is larger
    than both, the rest is put in front of them as padding. Two bases of the nested structures and the scheduler's
    variables take one alignment unit each.
    """
    q = tile.block_m * tile.head_dim * 2
    kv = tile.block_n * tile.head_dim * 2 * tile.stages
    # Partial results of a split over one length go to memory straight from registers.
    out = 0 if split and not varlen else tile.block_m * tile.head_dim * 2
    padding = max(0, out - 2 * kv)
    main = max(q, kv) + kv if tile.q_in_regs else q + 2 * kv
    tensors = ALIGNMENT + max(_up(padding), ALIGNMENT) + main
    return max(tensors, out) + ALIGNMENT


def of_kernel(mangled: str) -> int | None:
    """Bytes that the launch of a forward mma.sync kernel asks for, from its mangled name; None for any other kernel."""
    tile, variant = kernels.tile(mangled), kernels.variant(mangled)
    if tile is None or variant is None or kernels.kind(mangled) != "forward":
        return None
    return forward_bytes(tile, split="split" in variant.flags, varlen="varlen" in variant.flags)
