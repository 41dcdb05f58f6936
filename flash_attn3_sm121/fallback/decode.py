"""Decoding on a CPU: a few query rows, all of which see the same keys, for every sequence of a batch at once.

What counts is to read each key once, in long strides, on all cores. The query heads of a kv head are folded into rows;
each sequence is cut into parts of equal length, which are the kernel's jobs; the keys left over by the division (fewer
than there are parts) are copied out of all sequences into one small call; and one merge by LSE serves the batch.

With 16-bit types and few heads, all kv heads go into one product besides: queries stand in the blocks of a diagonal
of zeros, and the keys of all heads are one long row, read as they lie in memory. Multiplying by the zeros costs less
than a product per head does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
from torch import Tensor

from flash_attn3_sm121.fallback.blocked import accumulator, fold, unfold
from flash_attn3_sm121.fallback.problem import Facts, Sequence
from flash_attn3_sm121.fallback.selfcheck import Kernel

# With at most this many rows after folding, reading keys costs more than multiplying by them.
FOLDED_ROWS = 64
# Keys of a part: few enough to stay near the core, and enough that a job is worth its start.
PART_KEYS, LEAST_KEYS = 2048, 256
# A sequence this short is copied whole into the call for the leftovers.
SHORT_KEYS = 32
# All kv heads in one product: at most so many rows together (a tile of the matrix units), and so many of each head.
JOINED_ROWS, JOINED_HEAD_ROWS = 16, 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """The visible keys of some sequences of the batch, each `step` after the one before, as (count, n, Hk, d) views."""

    first: int
    keys: Tensor
    values: Tensor
    step: int = 1

    @property
    def at(self) -> slice:
        return slice(self.first, self.first + self.step * (self.keys.shape[0] - 1) + 1, self.step)


def _pair(a: Tensor, b: Tensor) -> Tensor | None:
    """Two (1, n, Hk, d) views of one cache as one (2, n, Hk, d) view, where `b` lies behind `a` at all."""
    distance = b.storage_offset() - a.storage_offset()
    one_cache = a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    if not one_cache or distance <= 0 or a.shape != b.shape or a.shape[0] != 1 or a.stride()[1:] != b.stride()[1:]:
        return None
    return a.as_strided((2, *a.shape[1:]), (distance, *a.stride()[1:]))


def paired(spans: Many[Span]) -> list[Span]:
    """Sequences that see equally many keys (a window) put together two by two, wherever in the cache those are."""
    result: list[Span] = []
    waiting: dict[int, int] = {}  # number of keys: the place in `result` of a sequence that is still alone
    for span in spans:
        count = span.keys.shape[1]
        alone = waiting.pop(count, None)
        before = result[alone] if alone is not None else None
        keys = _pair(before.keys, span.keys) if before is not None else None
        values = _pair(before.values, span.values) if before is not None and keys is not None else None
        if before is not None and alone is not None and keys is not None and values is not None:
            result[alone] = Span(first=before.first, keys=keys, values=values, step=span.first - before.first)
        else:
            waiting[count] = len(result)
            result.append(span)
    return result


def serves(found: Many[Sequence], info: Facts) -> bool:
    """Whether every sequence has the same few rows, one after the other, and they all see the same keys."""
    rows = found[0].rows if found else 0
    if rows < 1 or rows * info.group > FOLDED_ROWS or (rows > 1 and info.band.is_local):
        return False
    if not info.packed_q:
        return all(sequence.rows == info.rows for sequence in found)
    return all(sequence.rows == rows and sequence.q_start == sequence.index * rows for sequence in found)


def cut(keys: int, jobs: int, threads: int) -> tuple[int, int]:
    """(parts, keys of a part) of a sequence that makes `jobs` jobs a part; fewer than `parts` keys are left over."""
    if keys <= SHORT_KEYS:
        return 0, 0
    parts = -(-keys // PART_KEYS)
    if jobs * parts < 4 * threads:  # few jobs: the same number for each thread
        unit = threads // math.gcd(jobs, threads)
        parts = max(parts, min(-(-parts // unit) * unit, keys // LEAST_KEYS))
    return parts, keys // parts


def _zeros(like: Tensor, *shape: int) -> Tensor:
    """Zeros of `like`'s type, filled eight bytes at a time: torch wakes its threads by the number of elements, and for
    what decoding needs that takes longer than the filling."""
    each = 8 // like.dtype.itemsize
    if shape[-1] % each:
        return like.new_zeros(shape)
    return like.new_zeros((*shape[:-1], shape[-1] // each), dtype=torch.int64).view(like.dtype)


class Queries:
    """The rows of all sequences in the form that one kernel call wants, and its results put back."""

    def __init__(self, q: Tensor, kv_heads: int, *, joined: bool) -> None:
        self.folded = fold(q, kv_heads)  # (B, Hk, R, d)
        self.batch, self.kv_heads, self.rows, self.dim = self.folded.shape
        self.joined = joined
        # torch multiplies by a single 16-bit row several times slower than by two
        self.doubled = not joined and self.rows == 1 and q.dtype.itemsize == 2
        if joined:
            spread = _zeros(q, self.batch, kv_heads, self.rows, kv_heads, self.dim)
            spread.diagonal(dim1=1, dim2=3).copy_(self.folded.permute(0, 2, 3, 1))
            self.ready = spread.view(self.batch, 1, kv_heads * self.rows, kv_heads * self.dim)
        else:
            self.ready = self.folded.repeat(1, 1, 2, 1) if self.doubled else self.folded

    def attend(
        self, kernel: Kernel, at: slice, keys: Tensor, values: Tensor, *, scale: float, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """keys and values (n, parts, L, Hk, d) of sequences `at` to out (n, parts, Hk, R, d), lse (n, parts, Hk, R).

        A mask (n, 1, 1, L) goes with one part.
        """
        count, parts, _, kv_heads, dim = keys.shape
        ready = self.ready[at]
        if self.joined:
            rows = ready.expand(-1, parts, -1, -1)
            out, lse = kernel.forward(rows, keys.flatten(3), values.flatten(3), scale=scale, mask=mask)
            blocks = out.view(count, parts, kv_heads, self.rows, kv_heads, dim).diagonal(dim1=2, dim2=4)
            return blocks.permute(0, 1, 4, 2, 3), lse.view(count, parts, kv_heads, self.rows)
        keys, values = keys.transpose(2, 3), values.transpose(2, 3)
        if parts == 1:
            out, lse = kernel.forward(ready, keys[:, 0], values[:, 0], scale=scale, mask=mask)
            out, lse = out.unsqueeze(1), lse.unsqueeze(1)
        else:
            results = [
                kernel.forward(ready[i : i + 1].expand(parts, -1, -1, -1), keys[i], values[i], scale=scale)
                for i in range(count)
            ]
            out, lse = (torch.stack(tensors) for tensors in zip(*results, strict=True))
        return (out[:, :, :, :1], lse[..., :1]) if self.doubled else (out, lse)


def _joins(q: Tensor, spans: Many[Span], info: Facts) -> bool:
    rows = q.shape[1] * info.group
    if q.dtype.itemsize != 2 or rows > JOINED_HEAD_ROWS or rows * info.kv_heads > JOINED_ROWS:
        return False
    return all(tensor.stride(-2) == tensor.shape[-1] for span in spans for tensor in (span.keys, span.values))


@dataclass(frozen=True, kw_only=True, slots=True)
class Leftover:
    """The last `count` keys of a span's sequences."""

    span: Span
    count: int


def _leftovers(
    queries: Queries, kernel: Kernel, left: Many[Leftover], outs: Tensor, lses: Tensor, *, scale: float
) -> None:
    """One call over copies of what was left over everywhere, into the last slot of each sequence."""
    longest = max(one.count for one in left)
    shape = (queries.batch, 1, longest, queries.kv_heads, queries.dim)
    keys, values = _zeros(queries.folded, *shape), _zeros(queries.folded, *shape)
    mask = queries.folded.new_full((queries.batch, 1, 1, longest), -torch.inf)
    mask[:, :, :, 0] = 0  # a sequence without leftovers must not be hidden completely; its slot is not read
    for one in left:
        at, rest = one.span.at, slice(one.span.keys.shape[1] - one.count, None)
        keys[at, 0, : one.count], values[at, 0, : one.count] = one.span.keys[:, rest], one.span.values[:, rest]
        mask[at, :, :, : one.count] = 0
    out, lse = queries.attend(kernel, slice(None), keys, values, scale=scale, mask=mask)
    for one in left:
        outs[one.span.at, -1], lses[one.span.at, -1] = out[one.span.at, 0], lse[one.span.at, 0]


def _merge(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """(B, parts, Hk, R, d) and (B, parts, Hk, R) with -inf in slots that are not used; where none is, 0 and -inf."""
    if outs.shape[1] == 1:
        return outs[:, 0], lses[:, 0]
    # by hand: logsumexp takes longer than all of this, for tensors as small as these
    top = lses.amax(1, keepdim=True).clamp_(min=torch.finfo(lses.dtype).min)
    shares = (lses - top).exp_()
    sums = shares.sum(1)
    out = (outs * shares.unsqueeze(-1)).sum(1)
    return out.div_(sums.clamp(min=torch.finfo(sums.dtype).tiny).unsqueeze(-1)), sums.log_().add_(top.squeeze(1))


def forward(q: Tensor, spans: Many[Span], info: Facts, kernel: Kernel, scale: float) -> tuple[Tensor, Tensor]:
    """q (B, rows, H, d) and what each sequence sees (nothing: no span) to out (B, rows, H, d) and lse (B, H, rows)."""
    spans = paired(spans)
    joined = _joins(q, spans, info)
    out, lse = _forward(Queries(q, info.kv_heads, joined=joined), spans, kernel, scale)
    if joined and bool(lse.isnan().any()):  # zero times an infinite key of another head
        out, lse = _forward(Queries(q, info.kv_heads, joined=False), spans, kernel, scale)
    batch, rows = q.shape[:2]
    return unfold(out, rows), lse.reshape(batch, -1, rows)


def _forward(queries: Queries, spans: Many[Span], kernel: Kernel, scale: float) -> tuple[Tensor, Tensor]:
    threads = torch.get_num_threads()
    heads = 1 if queries.joined else queries.kv_heads
    cuts = [cut(span.keys.shape[1], heads * span.keys.shape[0], threads) for span in spans]
    left = [
        Leftover(span=span, count=span.keys.shape[1] - parts * length)
        for span, (parts, length) in zip(spans, cuts, strict=True)
        if span.keys.shape[1] > parts * length
    ]
    slots = max((parts for parts, _ in cuts), default=0) + (1 if left else 0)
    shape = (queries.batch, max(slots, 1), queries.kv_heads, queries.rows)
    outs = _zeros(queries.folded, *shape, queries.dim)
    lses = queries.folded.new_full(shape, -torch.inf, dtype=accumulator(outs.dtype))
    for span, (parts, length) in zip(spans, cuts, strict=True):
        if parts == 0:
            continue
        keys, values = (
            x[:, : parts * length].view(x.shape[0], parts, length, *x.shape[2:]) for x in (span.keys, span.values)
        )
        at = span.at
        outs[at, :parts], lses[at, :parts] = queries.attend(kernel, at, keys, values, scale=scale)
    if left:
        _leftovers(queries, kernel, left, outs, lses, scale=scale)
    return _merge(outs, lses)
