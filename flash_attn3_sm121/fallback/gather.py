"""Views of the queries and keys of neighbouring sequences, in the type that products are taken in.

Dense and packed tensors are only viewed; a paged cache is gathered, but only the pages that hold visible keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flash_attn3_sm121.errors import CallError
from flash_attn3_sm121.fallback.problem import FP8, Facts, Sequence


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """`count` neighbouring sequences of one shape that lie evenly in memory, so that one batched call serves them."""

    first: Sequence
    count: int

    @property
    def batch_slice(self) -> slice:
        return slice(self.first.index, self.first.index + self.count)


def _stacks(first: Sequence, count: int, new: Sequence, info: Facts) -> bool:
    """Whether `new` may join a group of `count` sequences that starts with `first`."""
    if info.paged or (new.rows, new.keys) != (first.rows, first.keys):
        return False
    q_step = count * first.rows if info.packed_q else 0
    k_step = count * first.keys if info.packed_k else 0
    rows_follow = new.k_row == first.k_row + count
    return rows_follow and new.q_start == first.q_start + q_step and new.k_start == first.k_start + k_step


def groups(sequences: Iterable[Sequence], info: Facts) -> Iterator[Group]:
    """Fold neighbours into groups; every sequence is in exactly one."""
    first: Sequence | None = None
    count = 0
    for sequence in sequences:
        if first is not None and _stacks(first, count, sequence, info):
            count += 1
            continue
        if first is not None:
            yield Group(first=first, count=count)
        first, count = sequence, 1
    if first is not None:
        yield Group(first=first, count=count)


def queries(tensor: Tensor, group: Group, *, packed: bool) -> Tensor:
    """The group's rows of a tensor laid out like q, as a (count, rows, heads, d) view."""
    first, rows = group.first, group.first.rows
    if packed:
        span = tensor[first.q_start : first.q_start + group.count * rows]
        return span.view(group.count, rows, *tensor.shape[1:])
    return tensor[group.batch_slice, first.q_start : first.q_start + rows]


def lse_rows(tensor: Tensor, group: Group, *, packed: bool) -> Tensor:
    """The group's rows of a tensor laid out like the LSE, as a (count, heads, rows) view."""
    first, rows = group.first, group.first.rows
    if packed:
        span = tensor[:, first.q_start : first.q_start + group.count * rows]
        return span.view(tensor.shape[0], group.count, rows).transpose(0, 1)
    return tensor[group.batch_slice, :, first.q_start : first.q_start + rows]


def dense_keys(tensor: Tensor, group: Group, low: int, high: int, *, packed: bool) -> Tensor:
    """Keys `[low, high)` of each sequence of the group from a dense or packed tensor, as a view."""
    first = group.first
    start = first.k_start
    if packed:
        span = tensor[start : start + group.count * first.keys]
        return span.view(group.count, first.keys, *tensor.shape[1:])[:, low:high]
    return tensor[first.k_row : first.k_row + group.count, start + low : start + high]


def paged_keys(cache: Tensor, pages: Tensor, sequence: Sequence, low: int, high: int) -> Tensor:
    """Keys `[low, high)` of one sequence, copied from its pages (`pages`: its row of the table)."""
    size = cache.shape[1]
    begin, end = sequence.k_start + low, sequence.k_start + high
    used = pages[begin // size : -(-end // size) if end > begin else begin // size]
    offset = begin // size * size
    tokens = cache.index_select(0, used).flatten(0, 1)
    return tokens[begin - offset : end - offset].unsqueeze(0)


def check_pages(pages: list[int], sequence: Sequence, *, begin: int, end: int, size: int, total: int) -> None:
    """Every page that positions `[begin, end)` of a sequence touch must exist."""
    for slot in range(begin // size, -(-end // size)):
        if not 0 <= pages[slot] < total:
            raise CallError(
                f"page_table[{sequence.k_row}, {slot}] is {pages[slot]}, but sequence {sequence.index} uses positions "
                f"{begin} .. {end - 1} of pages of {size}: a page number from 0 to {total - 1} must stand there"
            )


def dequantised(tensor: Tensor, descale: Tensor | None, batch: slice, *, heads: int, dtype: torch.dtype) -> Tensor:
    """A (n, rows, heads', d) tensor of the sequences in `batch` in the compute type, multiplied by their scales.

    The scales (b, heads) of the whole call count only where the tensor is fp8; elsewhere they may have any shape.
    """
    converted = tensor if tensor.dtype == dtype else tensor.to(dtype)
    if descale is None or tensor.dtype not in FP8:
        return converted
    per_head = descale[batch].to(dtype).repeat_interleave(tensor.shape[-2] // heads, dim=-1)
    return converted * per_head[:, None, :, None]
