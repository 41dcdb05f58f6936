"""Lengths and keys of a call whose lengths stay on the device: tensors that steer indices and masks, never read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flash_attn3_sm121.call.arguments import ForwardArgs
from flash_attn3_sm121.fallback import append
from flash_attn3_sm121.fallback.gather import dequantised
from flash_attn3_sm121.fallback.problem import FP8, Facts


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """(batch,) tensors: queries and keys in use, and where keys start in their row (or packed tensor).

    What the shapes say is no tensor: each is a launch, and launches are what a small decoding step costs.
    """

    rows: Tensor | int
    keys: Tensor
    start: Tensor | None

    def positions(self, row: int, count: int) -> Tensor:
        """Where rows `[row, row + count)` stand among the keys: (batch, count)."""
        shift = (self.keys - self.rows)[:, None]
        if (row, count) == (0, 1):
            return shift
        return shift + torch.arange(row, row + count, device=shift.device)


def lengths_of(args: ForwardArgs, info: Facts) -> Lengths:
    """The lengths after new keys were appended."""
    cu_q, cu_k = args.cu_seqlens_q, args.cu_seqlens_k
    rows: Tensor | int = (cu_q[1:] - cu_q[:-1]).long() if cu_q is not None else info.rows
    if args.seqused_q is not None:
        rows = args.seqused_q.long()
    start = cu_k[:-1].long() if cu_k is not None else None
    if args.seqused_k is not None:
        keys = args.seqused_k
    elif cu_k is not None:
        keys = (cu_k[1:] - cu_k[:-1]).long()
    else:
        keys = torch.full((info.batch,), info.capacity, dtype=torch.long, device=args.q.device)
    if args.k_new is not None:
        new = args.cu_seqlens_k_new
        grown = keys + ((new[1:] - new[:-1]).long() if new is not None else info.new_rows)
        keys = torch.where(keys < 0, 0, grown)  # a row of padding gets no key
    if args.leftpad_k is not None:
        start = args.leftpad_k.long() if start is None else start + args.leftpad_k
        keys = keys - args.leftpad_k
    return Lengths(rows=rows, keys=keys.clamp(0, info.capacity), start=start)


def spread(args: ForwardArgs, tensor: Tensor, info: Facts) -> Tensor:
    """Packed rows as (batch, rows, ...); what stands behind a sequence's end is never used."""
    if args.cu_seqlens_q is None:
        return tensor
    steps = torch.arange(info.rows, device=tensor.device)
    index = args.cu_seqlens_q[:-1, None].long() + steps
    return tensor[index.clamp(0, max(tensor.shape[0] - 1, 0))]


def gathered(args: ForwardArgs, info: Facts, lengths: Lengths, numbers: Tensor, batch: slice) -> tuple[Tensor, Tensor]:
    """Copies (n, keys, Hk, d | dv) of the keys and values with `numbers` (n, keys) of the sequences in `batch`.

    They are in the compute type. A number that a sequence does not have gets any key of the cache.
    """
    position = numbers if lengths.start is None else lengths.start[batch, None] + numbers
    if info.packed_k:
        where: tuple[Tensor, ...] = (position.clamp(0, args.k.shape[0] - 1),)
    else:
        owner = torch.arange(info.batch, device=numbers.device)[batch, None].expand_as(position)
        rows, slots = append.pages_of(args, info, owner, position.clamp(0, info.capacity - 1))
        where = rows.clamp(0, args.k.shape[0] - 1), slots
    results = []
    for cache, descale in ((args.k, args.k_descale), (args.v, args.v_descale)):
        # torch reads no fp8 by index
        copy = cache.view(torch.uint8)[where].view(cache.dtype) if cache.dtype in FP8 else cache[where]
        results.append(dequantised(copy, descale, batch, heads=info.kv_heads, dtype=info.compute_dtype))
    return results[0], results[1]


def span_of(info: Facts, row: int, count: int) -> int:
    """An upper bound on the keys that rows `[row, row + count)` see, from the first one on."""
    band, bounds = info.band, [info.capacity]
    if band.left >= 0:
        behind = info.rows - 1 - row  # no key stands behind the last row
        bounds.append(band.left + 1 + (min(count - 1 + band.right, behind) if band.right >= 0 else behind))
    if band.chunk > 0:
        bounds.append(((count + band.chunk - 2) // band.chunk + 1) * band.chunk)
    return min(bounds)


def first_key(info: Facts, position: Tensor) -> Tensor:
    """The first key that a block whose first row is at `position` (batch,) may see, in a window or a chunk."""
    band, bounds = info.band, []
    if band.left >= 0:
        bounds.append(position - band.left)
    if band.chunk > 0:
        bounds.append(torch.div(position, band.chunk, rounding_mode="floor") * band.chunk)
    first = bounds[0] if len(bounds) == 1 else torch.maximum(*bounds)
    return first.clamp(min=0)
