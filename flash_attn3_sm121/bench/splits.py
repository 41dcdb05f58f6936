"""Decoding on paper: what share of a device's bandwidth a number of splits uses. Bytes and waves, no run.

A call is batch times kv heads sequences, each cut into `splits` runs of key tiles. An SM takes the next run when it has
finished one; those that work share the bandwidth, and one alone reads no more than a tile for each latency of memory.
What starting a kernel takes is left out.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from flash_attn3_sm121.bench.devices import DeviceSheet, sheet
from flash_attn3_sm121.console import Block, Table, paragraph

HEADS, DIM, ITEM, COLUMNS = 32, 128, 2, 112  # columns of a tile: csrc/fa3_tile_128.h where lengths are split
LATENCY = 1e-6  # seconds from a load to its data: an assumption, on the slow side
BATCHES, TOKENS, GROUPS = (1, 2, 3, 4, 8, 16, 32, 64, 128), (2048, 8192, 32768, 131072), (1, 2, 4, 8)
MEMORY = 110e9  # bytes: larger caches are left out
ENOUGH = 0.85


@dataclass(frozen=True, kw_only=True)
class Decode:
    """One token a sequence, all of one length, head dim 128 in 16 bits, 32 query heads."""

    batch: int
    tokens: int
    group: int
    columns: int = COLUMNS

    @property
    def sequences(self) -> int:
        return self.batch * HEADS // self.group

    @property
    def tiles(self) -> int:
        return -(-self.tokens // self.columns)

    @property
    def bytes(self) -> int:
        return self.sequences * self.tokens * 2 * DIM * ITEM

    def splits_of_library(self, sms: int) -> int:
        """What num_splits=0 comes to: an upper bound as for a batch of one, then as many as give each SM its share.

        `tests/prove/test_plans.py` holds this against the library's own plans, executed.
        """
        most = _bound(HEADS // self.group, self.tiles, sms)
        if most == 1:
            return 1
        each = math.ceil(self.sequences * self.tiles * 1.1 / sms)  # tiles of an SM, with a tenth to spare
        return max(min(-(-self.tiles // each), most), 1)

    def share(self, splits: int, device: DeviceSheet, *, latency: float = LATENCY) -> float:
        """The time in which the cache's bytes could be read, over the predicted time."""
        loads, before, seconds = sorted(self._loads(splits, device.sms)), 0, 0.0
        tile, rate = self.columns * 2 * DIM * ITEM, device.gbps * 1e9
        alone = tile / 2 / latency  # a tile of K or of V is on its way
        for done, load in enumerate(loads):
            seconds += (load - before) * tile / min(rate / (len(loads) - done), alone)
            before = load
        partial = 2 * splits * self.batch * HEADS * DIM * 4 if splits > 1 else 0  # written, and read again
        return self.bytes / rate / (seconds * self.bytes / (self.sequences * self.tiles * tile) + partial / rate)

    def _loads(self, splits: int, sms: int) -> list[int]:
        """Tiles of each SM: the longest runs first, each to the SM that is free first."""
        each = -(-self.tiles // splits)
        whole, rest = divmod(self.tiles, each)
        count, more = divmod(self.sequences * whole, sms)
        loads = [each * (count + (sm < more)) for sm in range(sms)]
        heapq.heapify(loads)
        for _ in range(self.sequences if rest else 0):
            heapq.heapreplace(loads, loads[0] + rest)
        return loads

    def patience(self, splits: int, device: DeviceSheet) -> float:
        """The longest latency at which `ENOUGH` of the bandwidth is used, in steps of half a microsecond."""
        steps = (half * 5e-7 for half in range(20, 0, -1))
        return next((latency for latency in steps if self.share(splits, device, latency=latency) >= ENOUGH), 0.0)


def _bound(jobs: int, tiles: int, sms: int) -> int:
    """The library's upper bound: the fewest splits that fill 85 % as much of their waves as the best number does."""
    if jobs >= 0.8 * sms or tiles <= 4:
        return 1
    waves = [jobs * splits / sms for splits in range(1, min(128, sms, tiles) + 1)]
    filled = [wave / math.ceil(wave) for wave in waves]
    return next(splits for splits, share in enumerate(filled, 1) if share >= 0.85 * max(filled))


def calls() -> list[Decode]:
    """Those that are predicted."""
    every = (Decode(batch=b, tokens=t, group=g) for g in GROUPS for b in BATCHES for t in TOKENS)
    return [call for call in every if call.bytes <= MEMORY]


def table(name: str) -> list[Block]:
    """By batch and heads: the library's choices and the least share of the lengths; below, the best choices' gain."""
    device, rows, gain, wait = sheet(name), [], 0.0, 1.0
    for batch in BATCHES:
        cells = [str(batch)]
        for group in GROUPS:
            found = [call for call in calls() if (call.group, call.batch) == (group, batch)]
            chosen = [call.splits_of_library(device.sms) for call in found]
            shares = [call.share(splits, device) for call, splits in zip(found, chosen, strict=True)]
            for call, splits, share in zip(found, chosen, shares, strict=True):
                gain = max(gain, *(call.share(n, device) - share for n in range(1, 13)))
                wait = min(wait, call.patience(splits, device))
            cells.append(f"{'-'.join(dict.fromkeys((str(min(chosen)), str(max(chosen)))))}: {100 * min(shares):.0f} %")
        rows.append(tuple(cells))
    return [
        Table(head=("batch", *(f"{HEADS}/{HEADS // group} heads" for group in GROUPS)), rows=rows),
        "",
        *paragraph(
            f"{device.name}: so many splits num_splits=0 comes to, and the share of {device.gbps:g} GB/s that they "
            f"use, the least of 2K to 128K tokens. A prediction: caches up to {MEMORY / 1e9:.0f} GB, a latency of "
            f"{LATENCY * 1e6:g} us. The best number up to 12 would add {100 * gain:.0f} points at most; all stay above "
            f"{100 * ENOUGH:.0f} % up to a latency of {wait * 1e6:.1f} us."
        ),
    ]
