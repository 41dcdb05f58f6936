"""Which keys a query row sees, and how to cut a masked problem into pieces that need little or no mask.

Pure arithmetic on plain ints: no tensors, no device. A row `i` stands at position `p = i + shift`; with keys counted
from 0 it sees the half-open range `[low(i), high(i))`. Both ends never decrease with `i`, which is what makes the
cutting simple: rows that see nothing are a prefix, and a block of rows sees one contiguous span of keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

# Rows a block holds when a band is cut up. Fewer rows waste less of the span (span = rows + window), more rows
# give the kernel longer matrix products; 256 was the best of 64 .. 1024 for windows of 256 .. 1024 on CPU.
BLOCK_ROWS = 256
# In the backward, causal windows at least this wide are cut into squares as wide as the window instead: nothing is
# wasted, and the kernel takes its better path for blocks of 768 rows and more.
SQUARE_WINDOW = 768
# A problem with at most this many scores gets one explicit mask instead of being cut.
SMALL_MASK = 1 << 16
# From this many rows on, a causal chunk behind a long prefix is computed as prefix + square, merged by LSE.
SPLIT_ROWS = 16
# Rows that go to the kernel in one call of repeated blocks: bounds the temporary results, and the copies of the
# (overlapping) keys that the kernel packs for itself. The backward's blocks run on fewer jobs each, so it takes more.
REPEAT_ROWS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """The mask's shape: keys `p - left .. p + right` within the chunk of `p`; -1 (or chunk 0) is unlimited."""

    left: int = -1
    right: int = -1
    chunk: int = 0

    @property
    def is_local(self) -> bool:
        """Whether any side is limited (upstream's "causal or local"), which decides how rotary treats q."""
        return self.left >= 0 or self.right >= 0 or self.chunk > 0

    @property
    def is_causal(self) -> bool:
        return self.right == 0 and self.left < 0 and self.chunk == 0

    @classmethod
    def normalised(cls, *, left: int, right: int, chunk: int, causal: bool, max_rows: int, capacity: int) -> Band:
        """Upstream's normalisation: causal means right 0, and a side that can hide nothing becomes unlimited."""
        left = -1 if left < 0 or left >= capacity - 1 else left
        right = -1 if right < 0 or right >= max_rows - 1 else right
        return cls(left=left, right=0 if causal else right, chunk=max(chunk, 0))


class Kind(Enum):
    """What mask a piece needs."""

    FULL = "full"  # none
    CAUSAL = "causal"  # square, lower triangle with the diagonal
    MIRRORED = "mirrored"  # square, upper triangle with the diagonal
    BAND = "band"  # an explicit mask built from the band


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Rows `[row, row + rows)` against keys `[key, key + keys)`, `repeat` times, each time `rows` further in both."""

    row: int
    rows: int
    key: int
    keys: int
    kind: Kind
    repeat: int = 1

    @property
    def row_end(self) -> int:
        return self.row + self.rows * self.repeat

    @property
    def key_end(self) -> int:
        return self.key + self.keys + self.rows * (self.repeat - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """One attention problem: `rows` queries, `keys` keys, row `i` at position `i + shift`."""

    rows: int
    keys: int
    shift: int
    band: Band

    @classmethod
    def bottom_right(cls, *, rows: int, keys: int, band: Band) -> Geometry:
        """FlashAttention's alignment: the last query row stands at the last key."""
        return cls(rows=rows, keys=keys, shift=keys - rows, band=band)

    def low(self, row: int) -> int:
        """The first key that `row` sees (meaningful when it sees any)."""
        position = row + self.shift
        bounds = [0]
        if self.band.left >= 0:
            bounds.append(position - self.band.left)
        if self.band.chunk > 0:
            bounds.append(position // self.band.chunk * self.band.chunk)
        return min(max(bounds), self.keys)

    def high(self, row: int) -> int:
        """One past the last key that `row` sees."""
        position = row + self.shift
        bounds = [self.keys]
        if self.band.right >= 0:
            bounds.append(position + self.band.right + 1)
        if self.band.chunk > 0:
            bounds.append(position // self.band.chunk * self.band.chunk + self.band.chunk)
        return max(min(bounds), 0)

    @property
    def dead(self) -> int:
        """How many leading rows see no key at all."""
        if self.keys <= 0:
            return self.rows
        dead = 0
        if self.band.right >= 0:
            dead = max(dead, -self.shift - self.band.right)
        if self.band.chunk > 0:
            dead = max(dead, -self.shift)
        return min(dead, self.rows)

    def visible(self) -> tuple[int, int]:
        """The keys that any row sees, as a range; its start keeps chunk boundaries at multiples of the chunk."""
        if self.dead >= self.rows:
            return 0, 0
        low = self.low(self.dead)
        if self.band.chunk > 0:
            low = low // self.band.chunk * self.band.chunk
        return low, self.high(self.rows - 1)

    def narrowed(self) -> tuple[int, int, Geometry]:
        """The visible key range and the same problem with keys counted from its start."""
        low, high = self.visible()
        inner = Geometry(rows=self.rows, keys=high - low, shift=self.shift - low, band=self.band)
        return low, high, inner

    def uniform(self, row: int, row_end: int) -> bool:
        """Whether the rows `[row, row_end)` all see the same keys."""
        last = row_end - 1
        return self.low(row) == self.low(last) and self.high(row) == self.high(last)

    def sees_one(self, row: int) -> bool:
        return self.high(row) - self.low(row) == 1

    def alone(self) -> tuple[list[int], list[int]]:
        """The rows that see exactly one key, and those of their keys that only such rows see.

        Within a chunk (or without chunks) the number of visible keys grows, stays and shrinks from row to row: if not
        all rows see a single key, then only the first or the last can.
        """
        rows: list[int] = []
        start, chunk = self.dead, self.band.chunk
        while start < self.rows:
            end = min((start + self.shift) // chunk * chunk + chunk - self.shift, self.rows) if chunk else self.rows
            ends = [row for row in dict.fromkeys((start, end - 1)) if self.sees_one(row)]
            everyone = len(ends) == min(end - start, 2) and self.sees_one((start + end) // 2)
            rows += range(start, end) if everyone else ends
            start = end
        keys = {self.low(row) for row in rows}
        beside = {near for row in rows for near in (row - 1, row + 1) if self.dead <= near < self.rows}
        for row in beside.difference(rows):
            keys.difference_update(range(self.low(row), self.high(row)))
        return rows, sorted(keys)


def _block(geometry: Geometry, row: int) -> Piece:
    """The next block of rows from `row`; a block stays within a chunk, or holds whole chunks."""
    count = min(BLOCK_ROWS, geometry.rows - row)
    chunk = geometry.band.chunk
    if chunk > 0:
        into_chunk = (row + geometry.shift) % chunk
        whole = max(BLOCK_ROWS // chunk, 1) * chunk
        count = min(count, whole - into_chunk) if whole > into_chunk else min(count, chunk - into_chunk)
    low, high = geometry.low(row), geometry.high(row + count - 1)
    kind = Kind.FULL if geometry.uniform(row, row + count) else Kind.BAND
    return Piece(row=row, rows=count, key=low, keys=high - low, kind=kind)


def _extends(run: Piece, block: Piece, chunk: int) -> bool:
    """Whether `block` continues `run`: the same mask, moved on by exactly one block."""
    return (
        run.rows * (run.repeat + 1) <= REPEAT_ROWS
        and block.rows == run.rows
        and block.keys == run.keys
        and block.kind == run.kind
        and block.key == run.key + run.rows * run.repeat
        and (chunk == 0 or run.rows % chunk == 0)
    )


def _banded(geometry: Geometry) -> list[tuple[Piece, ...]]:
    """Blocks of rows against the span each sees; equal neighbours are folded into one repeated piece."""
    runs: list[Piece] = []
    row = geometry.dead
    band = geometry.band
    filling = band.left + 1  # the rows of a causal window that still see every key before them: a plain causal square
    starts_empty = band.right == 0 and band.chunk == 0 and row + geometry.shift == 0
    if starts_empty and BLOCK_ROWS <= filling <= geometry.rows - row:
        runs.append(Piece(row=row, rows=filling, key=0, keys=filling, kind=Kind.CAUSAL))
        row += filling
    while row < geometry.rows:
        block = _block(geometry, row)
        row = block.row_end
        if runs and _extends(runs[-1], block, geometry.band.chunk):
            last = runs.pop()
            block = Piece(
                row=last.row, rows=last.rows, key=last.key, keys=last.keys, kind=last.kind, repeat=last.repeat + 1
            )
        runs.append(block)
    return [(run,) for run in runs]


def _has_squares(geometry: Geometry) -> bool:
    band, before = geometry.band, geometry.dead + geometry.shift
    causal = band.right == 0 and band.chunk == 0 and geometry.rows + geometry.shift == geometry.keys
    wide = band.left >= SQUARE_WINDOW and geometry.rows - geometry.dead >= 2 * band.left
    return causal and wide and (before == 0 or before >= band.left)


def _squares(geometry: Geometry) -> list[tuple[Piece, ...]]:
    """A causal window as squares: a block of `left` rows sees the lower triangle of its own keys and the upper
    triangle of the `left` keys before them, both with the diagonal."""
    side, shift, row = geometry.band.left, geometry.shift, geometry.dead
    groups: list[tuple[Piece, ...]] = []
    if row + shift == 0:
        groups.append((Piece(row=row, rows=side, key=0, keys=side, kind=Kind.CAUSAL),))
        row += side
    while geometry.rows - row >= side:
        repeat = min((geometry.rows - row) // side, max(4 * REPEAT_ROWS // side, 1))
        groups.append(
            (
                Piece(row=row, rows=side, key=row + shift, keys=side, kind=Kind.CAUSAL, repeat=repeat),
                Piece(row=row, rows=side, key=row + shift - side, keys=side, kind=Kind.MIRRORED, repeat=repeat),
            )
        )
        row += side * repeat
    rest = geometry.rows - row
    if rest > 0:
        groups.append(
            (
                Piece(row=row, rows=rest, key=row + shift, keys=rest, kind=Kind.CAUSAL),
                Piece(row=row, rows=rest, key=row + shift - side, keys=side, kind=Kind.BAND),
            )
        )
    return groups


def plan(geometry: Geometry, *, backward: bool = False) -> list[tuple[Piece, ...]]:
    """Groups of pieces that together cover every (row, key) pair that is visible, each pair once.

    The pieces of one group share their rows, and their results have to be merged by LSE; different groups have
    different rows. Rows below `geometry.dead` are in no group.
    """
    dead = geometry.dead
    count = geometry.rows - dead
    if count <= 0:
        return []
    low, high = geometry.low(dead), geometry.high(geometry.rows - 1)
    if geometry.uniform(dead, geometry.rows):
        return [(Piece(row=dead, rows=count, key=low, keys=high - low, kind=Kind.FULL),)]
    before = dead + geometry.shift  # keys that every live row of a causal problem sees
    square = geometry.band.is_causal and before + count == geometry.keys
    if square and before == 0:
        return [(Piece(row=dead, rows=count, key=0, keys=count, kind=Kind.CAUSAL),)]
    if count * (high - low) <= SMALL_MASK:
        return [(Piece(row=dead, rows=count, key=low, keys=high - low, kind=Kind.BAND),)]
    if square and count >= SPLIT_ROWS:
        return [
            (
                Piece(row=dead, rows=count, key=0, keys=before, kind=Kind.FULL),
                Piece(row=dead, rows=count, key=before, keys=count, kind=Kind.CAUSAL),
            )
        ]
    if backward and _has_squares(geometry):
        return _squares(geometry)
    return _banded(geometry)
