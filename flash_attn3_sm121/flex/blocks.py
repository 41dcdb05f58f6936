"""Block masks, made from row intervals, and the cache that keeps them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from flash_attn3_sm121.flex.ranges import Ranges

BLOCK = 128  # torch's own default, which its kernels' tiles divide

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _mask_mod(ranges: Ranges) -> MaskMod:
    lo, hi = ranges.lo, ranges.hi
    if lo.dim() == 1:

        def shared(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (k >= lo[q]) & (k < hi[q])

        return shared

    def per_sequence(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k >= lo[b, q]) & (k < hi[b, q])

    return per_sequence


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(number of true entries, their indices first) for each row of a (b, 1, nq, nk) bool."""
    count = blocks.sum(dim=-1, dtype=torch.int32)
    index = torch.argsort(blocks.to(torch.int8), dim=-1, descending=True, stable=True)
    return count, index.to(torch.int32).contiguous()


def block_mask(ranges: Ranges, keys: int) -> BlockMask:
    """The block mask of row intervals.

    Blocks whose pairs are all kept are computed without a mask, cut ones with it, all others are left out.
    """
    lo, hi = (x if x.dim() == 2 else x[None] for x in (ranges.lo, ranges.hi))
    batch, rows = lo.shape
    tiles_q, tiles_k = -(-rows // BLOCK), -(-keys // BLOCK)
    pad = tiles_q * BLOCK - rows
    empty = lo >= hi

    def per_tile(x: Tensor, fill: int) -> Tensor:
        return torch.nn.functional.pad(x, (0, pad), value=fill).view(batch, tiles_q, BLOCK)

    # Empty rows and the padding of a last tile widen nothing, but keep their tile from being whole.
    first = per_tile(torch.where(empty, keys, lo), keys).amin(-1)
    last = per_tile(torch.where(empty, 0, hi), 0).amax(-1)
    whole_first = per_tile(torch.where(empty, keys, lo), keys).amax(-1)
    whole_last = per_tile(torch.where(empty, 0, hi), 0).amin(-1)
    start = torch.arange(tiles_k, device=lo.device) * BLOCK
    stop = (start + BLOCK).clamp(max=keys)
    touched = (start < last[..., None]) & (stop > first[..., None])
    # A ragged last block is never whole: the kernels bound keys only where they apply a mask.
    inside = (start >= whole_first[..., None]) & (start + BLOCK <= whole_last[..., None])
    whole = touched & inside
    count, index = _ordered((touched & ~whole)[:, None])
    full_count, full_index = _ordered(whole[:, None])
    return BlockMask.from_kv_blocks(
        count,
        index,
        full_count,
        full_index,
        BLOCK_SIZE=BLOCK,
        mask_mod=_mask_mod(ranges),
        seq_lengths=(rows, keys),
    )


def mask_bytes(mask: BlockMask) -> int:
    """The bytes of a block mask's index tensors, which is nearly all that it holds on its device."""
    return sum(x.numel() * x.element_size() for x in mask.as_tuple() if isinstance(x, Tensor))


class MaskCache:
    """Least recently used block masks, bounded in number and in bytes. Keys name the device. Thread-safe."""

    def __init__(self, *, entries: int = 32, max_bytes: int = 256 << 20) -> None:
        self._entries, self._max_bytes = entries, max_bytes
        self._held: OrderedDict[Hashable, tuple[BlockMask, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self._held.values())

    def get(self, key: Hashable, build: Callable[[], BlockMask]) -> BlockMask:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                self.hits += 1
                return self._held[key][0]
            self.misses += 1
        mask = build()
        with self._lock:
            self._held[key] = (mask, mask_bytes(mask))
            while len(self._held) > 1 and (len(self._held) > self._entries or self.bytes > self._max_bytes):
                self._held.popitem(last=False)
        return mask

    def clear(self) -> None:
        with self._lock:
            self._held.clear()
            self.hits = self.misses = 0
