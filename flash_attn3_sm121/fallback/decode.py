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
from collections.abc import Callable
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


Load = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """The `length` visible keys of `count` sequences of the batch, each `step` after the one before.

    `load` gives (keys, values) as (count, length, Hk, d): views, or copies (pages, other types), of which only those of
    one span are wanted at a time.
    """

    first: int
    count: int
    length: int
    load: Load
    step: int = 1

    @property
    def at(self) -> slice:
        return slice(self.first, self.first + self.step * (self.count - 1) + 1, self.step)


def _pair(a: Tensor, b: Tensor) -> Tensor | None:
    """Two (1, n, Hk, d) views of one cache as one (2, n, Hk, d) view, where `b` lies behind `a` at all."""
    distance = b.storage_offset() - a.storage_offset()
    one_cache = a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    if not one_cache or distance <= 0 or a.shape != b.shape or a.stride()[1:] != b.stride()[1:]:
        return None
    return a.as_strided((2, *a.shape[1:]), (distance, *a.stride()[1:]))


def _paired(one: Span, other: Span) -> Span | None:
    (keys, values), (more_keys, more_values) = one.load(), other.load()
    both_keys, both_values = _pair(keys, more_keys), _pair(values, more_values)
    if both_keys is None or both_values is None:
        return None
    both = (both_keys, both_values)
    return Span(first=one.first, count=2, length=one.length, load=lambda: both, step=other.first - one.first)


def paired(spans: Many[Span]) -> list[Span]:
    """Views of equally many keys (a window) put together two by two, wherever in the cache they are."""
    result: list[Span] = []
    waiting: dict[int, int] = {}  # a length: the place in `result` of a sequence that is still alone
    for span in spans:
        alone = waiting.pop(span.length, None) if span.count == 1 else None
        both = _paired(result[alone], span) if alone is not None else None
        if alone is not None and both is not None:
            result[alone] = both
        else:
            if span.count == 1:
                waiting[span.length] = len(result)
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


def joins(q: Tensor, k: Tensor, v: Tensor, info: Facts) -> bool:
    """Whether all kv heads of the cache go into one product: few of them, in 16 bits, that lie side by side."""
    rows = q.shape[1] * info.group
    if q.dtype.itemsize != 2 or rows > JOINED_HEAD_ROWS or rows * info.kv_heads > JOINED_ROWS:
        return False
    return all(tensor.stride(-2) == tensor.shape[-1] for tensor in (k, v))


class Leftovers:
    """Copies of the last keys of each sequence, of no more than `longest`, for one call over all sequences."""

    def __init__(self, queries: Queries, longest: int) -> None:
        like, shape = queries.folded, (queries.batch, 1, longest, queries.kv_heads, queries.dim)
        self.keys, self.values = _zeros(like, *shape), _zeros(like, *shape)
        self.mask = like.new_full((queries.batch, 1, 1, longest), -torch.inf)
        self.mask[:, :, :, 0] = 0  # no sequence may be hidden completely; the slot of one without leftovers is not read

    def put(self, at: slice, keys: Tensor, values: Tensor) -> None:
        count = keys.shape[1]
        self.keys[at, 0, :count], self.values[at, 0, :count] = keys, values
        self.mask[at, :, :, :count] = 0


def merge_parts(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """(B, parts, ..., d) and (B, parts, ...) without the parts; -inf stands in slots that are not used, and where none
    is used comes 0 and -inf."""
    if outs.shape[1] == 1:
        return outs[:, 0], lses[:, 0]
    # by hand: logsumexp takes longer than all of this, for tensors as small as these
    top = lses.amax(1, keepdim=True).clamp_(min=torch.finfo(lses.dtype).min)
    shares = (lses - top).exp_()
    sums = shares.sum(1)
    out = (outs * shares.unsqueeze(-1)).sum(1)
    return out.div_(sums.clamp(min=torch.finfo(sums.dtype).tiny).unsqueeze(-1)), sums.log_().add_(top.squeeze(1))


def forward(
    q: Tensor, spans: Many[Span], kernel: Kernel, *, scale: float, kv_heads: int, joined: bool
) -> tuple[Tensor, Tensor]:
    """q (B, rows, H, d) and what each sequence sees (nothing: no span) to out (B, rows, H, d) and lse (B, H, rows)."""
    out, lse = _forward(Queries(q, kv_heads, joined=joined), spans, kernel, scale)
    if joined and bool(lse.isnan().any()):  # zero times an infinite key of another head
        out, lse = _forward(Queries(q, kv_heads, joined=False), spans, kernel, scale)
    batch, rows = q.shape[:2]
    return unfold(out, rows), lse.reshape(batch, -1, rows)


def _forward(queries: Queries, spans: Many[Span], kernel: Kernel, scale: float) -> tuple[Tensor, Tensor]:
    threads = torch.get_num_threads()
    heads = 1 if queries.joined else queries.kv_heads
    cuts = [cut(span.length, heads * span.count, threads) for span in spans]
    rests = [span.length - parts * length for span, (parts, length) in zip(spans, cuts, strict=True)]
    left = Leftovers(queries, max(rests)) if any(rests) else None
    slots = max((parts for parts, _ in cuts), default=0) + (1 if left else 0)
    shape = (queries.batch, max(slots, 1), queries.kv_heads, queries.rows)
    outs = _zeros(queries.folded, *shape, queries.dim)
    lses = queries.folded.new_full(shape, -torch.inf, dtype=accumulator(outs.dtype))
    for span, (parts, length), rest in zip(spans, cuts, rests, strict=True):
        keys, values = span.load()
        if parts:
            cutting = (span.count, parts, length)
            blocks = (x[:, : parts * length].view(*cutting, *x.shape[2:]) for x in (keys, values))
            outs[span.at, :parts], lses[span.at, :parts] = queries.attend(kernel, span.at, *blocks, scale=scale)
        if left and rest:
            left.put(span.at, keys[:, -rest:], values[:, -rest:])
        del keys, values  # copies go before the next ones come
    if left:
        out, lse = queries.attend(kernel, slice(None), left.keys, left.values, scale=scale, mask=left.mask)
        for span, rest in zip(spans, rests, strict=True):
            if rest:
                outs[span.at, -1], lses[span.at, -1] = out[span.at, 0], lse[span.at, 0]
    return merge_parts(outs, lses)
