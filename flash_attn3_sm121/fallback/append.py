"""New keys and values written into the cache in place, dense or paged. Tensor arithmetic only; no host reads.

Checks come first and live elsewhere: on the host in `problem.sequences`, or stream-ordered in `static.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flash_attn3_sm121.call.arguments import ForwardArgs
from flash_attn3_sm121.errors import CallError
from flash_attn3_sm121.fallback import rotary
from flash_attn3_sm121.fallback.problem import FP8, Facts


@dataclass(frozen=True, kw_only=True, slots=True)
class NewTokens:
    """The tokens to write: where (row of the cache or page, slot) and what, one entry a token."""

    rows: Tensor  # (n,)
    slots: Tensor  # (n,)
    keys: Tensor  # (n, Hk, d), rotated, in the cache's type
    values: Tensor


def _held(args: ForwardArgs) -> Tensor:
    if args.seqused_k is None:
        raise CallError("k (new keys) needs cache_seqlens: give the number of tokens that the cache already holds")
    return args.seqused_k.long()


def rotary_base(args: ForwardArgs) -> Tensor:
    """The position of a sequence's first new token in the rotary table; for a row of padding it may be negative."""
    return args.seqlens_rotary.long() if args.seqlens_rotary is not None else _held(args)


def _converted(new: Tensor, cache: Tensor, scale: Tensor | None, owner: Tensor) -> Tensor:
    """`new` (n, Hk, d) in the cache's type: fp8 holds numbers divided by the `scale` (b, Hk) of the sequence that each
    belongs to (`owner`), cut to its range."""
    if new.dtype in FP8 and cache.dtype not in FP8:
        raise CallError(f"a cache in {cache.dtype} and its new tokens must have the same dtype, found {new.dtype}")
    if cache.dtype not in FP8 or new.dtype in FP8:
        return new.to(cache.dtype)
    divided = new.float() if scale is None else new.float() / scale[owner][..., None]
    most = torch.finfo(cache.dtype).max
    return divided.clamp(-most, most).to(cache.dtype)


def _flat(tensor: Tensor) -> Tensor:
    return tensor if tensor.dim() == 3 else tensor.flatten(0, 1)


def _bytes(tensor: Tensor) -> Tensor:
    """fp8 as bytes: torch writes none by index, and torch 2.9 reads none so on a CPU."""
    return tensor.view(torch.uint8) if tensor.dtype in FP8 else tensor


def places(args: ForwardArgs, info: Facts) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of every new token: (sequence, position in the cache, index in k_new), all flat; and whether there is any.

    Two kinds of tokens are not written: those of rows with a negative cache_seqlens, which are padding, and padding
    behind the last token of a packed k_new. Lengths stay on the device, so the number of writes is fixed: these tokens
    are aimed at the first one that is written, with its value. Writing it twice is harmless.
    """
    held = _held(args)
    if args.cu_seqlens_k_new is None:
        index = torch.arange(info.batch * info.new_rows, device=held.device)
        owner = torch.div(index, max(info.new_rows, 1), rounding_mode="floor")
        written = (held >= 0)[owner]
    else:
        offsets = args.cu_seqlens_k_new.long()
        index = torch.arange(info.new_rows, device=held.device)
        owner = torch.searchsorted(offsets[1:].contiguous(), index, right=True).clamp(max=info.batch - 1)
        written = (held[owner] >= 0) & (index < offsets[-1])
    if index.numel() == 0:
        return owner, held[owner], index, written.any()
    first = written.to(torch.uint8).argmax()
    index = torch.where(written, index, first)
    owner = owner[index]
    start = offsets[owner] if args.cu_seqlens_k_new is not None else owner * info.new_rows
    return owner, held[owner] + index - start, index, written.any()


def cache_rows(args: ForwardArgs, info: Facts) -> Tensor:
    """The cache's row, or the page table's, of each sequence (batch,).

    A row of padding may have a cache_batch_idx that no row has: it gets the first.
    """
    if args.kv_batch_idx is None:
        return torch.arange(info.batch, device=args.q.device)
    rows = args.kv_batch_idx.long()
    return rows if args.seqused_k is None else rows.masked_fill(args.seqused_k < 0, 0)


def pages_of(args: ForwardArgs, info: Facts, owner: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """(row, slot) in the cache tensor of positions of sequences; the page number is not checked here."""
    rows = cache_rows(args, info)[owner] if args.kv_batch_idx is not None else owner
    if args.page_table is None:
        return rows, position
    page = torch.div(position, info.page_size, rounding_mode="floor").clamp(0, args.page_table.shape[1] - 1)
    return args.page_table[rows, page].long(), position % info.page_size


def _or_nothing(
    args: ForwardArgs, any_token: Tensor, rows: Tensor, slots: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """New tokens that are padding only must change nothing: write the cache's first token back onto itself."""
    rows, slots = torch.where(any_token, rows, 0), torch.where(any_token, slots, 0)
    kept_k, kept_v = args.k[:1, :1].flatten(0, 1), args.v[:1, :1].flatten(0, 1)
    return rows, slots, _choose(any_token, keys, kept_k), _choose(any_token, values, kept_v)


def _choose(condition: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(condition, _bytes(new), _bytes(old)).view(new.dtype)


def prepare(args: ForwardArgs, info: Facts) -> NewTokens | None:
    """Work out what goes where, without writing; None when there is nothing to write."""
    if args.k_new is None or args.v_new is None or info.batch == 0:
        return None
    k_new = args.k_new
    if args.rotary_cos is not None and args.rotary_sin is not None:
        offsets = args.cu_seqlens_k_new.long() if args.cu_seqlens_k_new is not None else None
        where = rotary.positions(rotary_base(args), offsets, info.new_rows, advance=True)
        kept = args.k.dtype if args.k.dtype not in FP8 else k_new.dtype
        k_new = rotary.rotate(
            k_new, args.rotary_cos, args.rotary_sin, where, interleaved=args.rotary_interleaved, dtype=kept
        )
    owner, position, index, any_token = places(args, info)
    if index.numel() == 0 or info.empty_k or info.capacity == 0:
        return None
    rows, slots = pages_of(args, info, owner, position)
    keys, values = (
        _converted(_bytes(_flat(new))[index].view(new.dtype), cache, scale, owner)
        for new, cache, scale in ((k_new, args.k, args.k_descale), (args.v_new, args.v, args.v_descale))
    )
    rows, slots, keys, values = _or_nothing(args, any_token, rows, slots, keys, values)
    return NewTokens(rows=rows, slots=slots, keys=keys, values=values)


def write(args: ForwardArgs, new: NewTokens) -> None:
    """Write the prepared tokens; everything must have been checked."""
    for cache, values in ((args.k, new.keys), (args.v, new.values)):
        _bytes(cache).index_put_((new.rows, new.slots), _bytes(values))
