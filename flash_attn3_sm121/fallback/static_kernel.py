"""The fused kernel for `static.py`: blocks of keys under an additive mask that is made of lengths on the device.

A few rows (decoding) fold the query heads into rows, so that each key is read once, and cut the keys into parts that
the kernel works on side by side. More rows take the query heads of a kv head in turn, over views of the same keys.
Either way nothing but the mask and the zeroed copies of one block of keys exists at a time, and results over different
keys are merged by LSE. What the kernel gives out for a row that sees nothing of its keys is never believed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flash_attn3_sm121.fallback import attend
from flash_attn3_sm121.fallback import geometry as cuts
from flash_attn3_sm121.fallback.blocked import accumulator, fold
from flash_attn3_sm121.fallback.decode import FOLDED_ROWS, merge_parts
from flash_attn3_sm121.fallback.problem import Facts
from flash_attn3_sm121.fallback.selfcheck import Kernel

# Of one block: bytes of copied keys (as many of values again), entries of its mask.
COPY_BYTES, MASK_ENTRIES = 1 << 26, 1 << 25
# Query rows at a time over the whole batch, and the fewest of a sequence: each block of rows copies the keys anew.
ROWS, LEAST_ROWS = 2048, 64
# A block that does not take all keys takes a multiple of this many.
KEY_GRAIN = 64
# Folded rows make one job per kv head. From SPLIT_KEYS keys on that is too few: parts of at least PART_KEYS are made,
# up to JOBS jobs. Below, the launches that a merge takes cost more than the waiting.
SPLIT_KEYS, PART_KEYS, JOBS = 4096, 512, 512
# Partial results are merged when they hold more entries than this.
PARTIAL_ENTRIES = 1 << 24


def row_step(info: Facts) -> int:
    """The number of rows in a block. A larger one would span more keys of a window that most rows do not see."""
    if info.band.left >= 0 or info.band.chunk > 0:
        return cuts.BLOCK_ROWS
    return max(LEAST_ROWS, ROWS // info.batch)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Row i sees the keys `low[:, i] <= number < high[:, i]` (batch, rows); None: that side hides no key in use."""

    low: Tensor | None = None
    high: Tensor | None = None


def limits(info: Facts, positions: Tensor | None, keys: Tensor, *, gathered: bool) -> Limits:
    """The band around `positions` (batch, rows) among `keys` (batch,) keys; a side that can be left out saves a launch.

    `gathered`: key numbers start at the first that the first row sees. Rows behind a sequence's used end may see more.
    """
    band, low, high = info.band, None, None
    single = info.rows == 1  # it stands at the last key, so nothing is hidden behind it
    if positions is None or (single and gathered):
        return Limits()
    if band.left >= 0:
        low = positions - band.left
    if band.right >= 0:
        high = positions + (band.right + 1)
        if band.right > 0:
            high = torch.minimum(high, keys[:, None])
    if band.chunk > 0:
        start = torch.div(positions, band.chunk, rounding_mode="floor") * band.chunk
        low = start if low is None else torch.maximum(low, start)
        if not single:
            high = torch.minimum(start + band.chunk, keys[:, None] if high is None else high)
    return Limits(low=low, high=high)


class Fused:
    """One block of query rows (B, R, H, d), one block of keys after the other."""

    def __init__(self, kernel: Kernel, q: Tensor, info: Facts, limits: Limits, *, scale: float) -> None:
        self.kernel, self.info, self.limits, self.scale = kernel, info, limits, scale
        self.q = attend.padded(q, info.dim)
        self.batch, self.rows = q.shape[:2]
        self.few = self.rows * info.group <= FOLDED_ROWS
        self.outs: list[Tensor] = []  # (B, parts, Hk, G, R, d) each
        self.lses: list[Tensor] = []

    def key_step(self, span: int, *, copied: bool, masked: bool) -> int:
        """How many of `span` keys to take at a time; `copied`: not views of the cache."""
        bounds = [span]
        if copied:
            bounds.append(COPY_BYTES // (self.batch * self.info.kv_heads * self.info.dim * self.q.dtype.itemsize))
        if masked:
            bounds.append(MASK_ENTRIES // (self.batch * self.rows * (self.info.group if self.few else 1)))
        step = min(bounds)
        return span if step >= span else max(step // KEY_GRAIN * KEY_GRAIN, KEY_GRAIN)

    def add(self, numbers: Tensor, unused: Tensor | None, k: Tensor, v: Tensor) -> None:
        """Take in keys and values (B, n, Hk, d | dv) with their numbers (B, n), and which of them are not in use."""
        k, v = attend.padded(k, self.info.dim), attend.padded(v, self.info.dim)
        masked = unused is not None or self.limits.low is not None or self.limits.high is not None
        parts = self._parts(k, v) if self.few and masked else 1
        hidden = self._hidden(numbers, unused, parts)
        out, lse = self._folded(k, v, hidden, parts) if self.few else self._in_turn(k, v, hidden)
        if hidden is not None:
            nothing = hidden.all(-1)[:, :, None, None]
            out.masked_fill_(nothing.unsqueeze(-1), 0.0)
            lse.masked_fill_(nothing, -torch.inf)
        self.outs.append(out)
        self.lses.append(lse)
        if len(self.outs) > 1 and sum(part.numel() for part in self.outs) > PARTIAL_ENTRIES:
            out, lse = self._merged()
            self.outs, self.lses = [out.unsqueeze(1)], [lse.unsqueeze(1)]

    def result(self) -> tuple[Tensor, Tensor]:
        """out (B, R, H, dv) and lse (B, H, R); rows that saw nothing give 0 and -inf."""
        out, lse = self._merged()
        heads = self.info.heads
        out = out[..., : self.info.dim_v].permute(0, 3, 1, 2, 4)
        return out.reshape(self.batch, self.rows, heads, -1), lse.reshape(self.batch, heads, self.rows)

    def _parts(self, k: Tensor, v: Tensor) -> int:
        """The number of parts of equal length into which keys are cut, each of them a view."""
        count = k.shape[1]
        if count < SPLIT_KEYS or (self.batch > 1 and any(x.stride(0) != count * x.stride(1) for x in (k, v))):
            return 1
        most = min(JOBS // (self.batch * self.info.kv_heads), count // PART_KEYS)
        return next((parts for parts in range(most, 1, -1) if count % parts == 0), 1)

    def _hidden(self, numbers: Tensor, unused: Tensor | None, parts: int) -> Tensor | None:
        """(B, parts, R, n) or, the same for all rows, (B, parts, 1, n): which keys of each part a row must not see."""
        shape = (self.batch, parts, 1, numbers.shape[1] // parts)
        low, high = self.limits.low, self.limits.high
        hidden = unused.view(shape) if unused is not None else None
        if high is not None:
            hidden = numbers.view(shape) >= high[:, None, :, None]
        if low is not None:
            below = numbers.view(shape) < low[:, None, :, None]
            hidden = below if hidden is None else hidden | below
        return hidden

    def _additive(self, hidden: Tensor | None, group: int) -> Tensor | None:
        """The mask (B * parts, 1, group * R, n) of `group` query heads folded into rows."""
        if hidden is None:
            return None
        batch, parts, rows, keys = hidden.shape
        spread = group if rows > 1 else 1
        mask = self.q.new_zeros((batch, parts, spread, rows, keys)).masked_fill_(hidden.unsqueeze(2), -torch.inf)
        return mask.view(batch * parts, 1, spread * rows, keys).expand(-1, -1, group * self.rows, -1)

    def _folded(self, k: Tensor, v: Tensor, hidden: Tensor | None, parts: int) -> tuple[Tensor, Tensor]:
        """All heads in one call, the parts as its batch."""
        kv_heads, group = self.info.kv_heads, self.info.group
        queries = fold(self.q, kv_heads)
        if parts > 1:
            queries = queries.unsqueeze(1).expand(-1, parts, -1, -1, -1).flatten(0, 1)
            k, v = (x.view(self.batch, parts, -1, *x.shape[2:]).flatten(0, 1) for x in (k, v))
        mask = self._additive(hidden, group)
        out, lse = self.kernel.forward(queries, k.transpose(1, 2), v.transpose(1, 2), scale=self.scale, mask=mask)
        shape = (self.batch, parts, kv_heads, group, self.rows)
        return out.view(*shape, self.info.dim), lse.view(shape)

    def _in_turn(self, k: Tensor, v: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """One query head of each kv head, or one sequence, a call: the kernel would copy keys for heads in groups."""
        group, mask, results = self.info.group, self._additive(hidden, 1), []
        by_head = self.q.view(self.batch, self.rows, -1, group, self.info.dim)
        queries = by_head.permute(3, 0, 2, 1, 4)  # (G, B, Hk, R, d)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        if self.batch < group:
            for b in range(self.batch):
                keys, values = (tensor[b : b + 1].expand(group, -1, -1, -1) for tensor in (k, v))
                one = mask[b : b + 1] if mask is not None else None
                results.append(self.kernel.forward(queries[:, b], keys, values, scale=self.scale, mask=one))
            out, lse = (_stacked(tensors, 1) for tensors in zip(*results, strict=True))
        else:
            results = [self.kernel.forward(one, k, v, scale=self.scale, mask=mask) for one in queries]
            out, lse = (_stacked(tensors, 0) for tensors in zip(*results, strict=True))
        return out.permute(1, 2, 0, 3, 4).unsqueeze(1), lse.permute(1, 2, 0, 3).unsqueeze(1)

    def _merged(self) -> tuple[Tensor, Tensor]:
        """out (B, Hk, G, R, d) and lse (B, Hk, G, R) over all keys so far."""
        if not self.outs:
            shape = (self.batch, self.info.kv_heads, self.info.group, self.rows)
            kind = accumulator(self.q.dtype)
            return self.q.new_zeros((*shape, self.info.dim)), self.q.new_full(shape, -torch.inf, dtype=kind)
        return merge_parts(_joined(self.outs), _joined(self.lses))


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat(tensors, dim=1) if len(tensors) > 1 else tensors[0]


def _stacked(tensors: tuple[Tensor, ...], dim: int) -> Tensor:
    return torch.stack(tensors, dim) if len(tensors) > 1 else tensors[0].unsqueeze(dim)
