"""The forward pass without reading a length: for decoding on CUDA, where waiting for the device costs more than work.

Shapes decide every loop; lengths stay tensors and only steer masks and indices, so the call neither synchronises nor
changes its launches from step to step (a CUDA graph can capture it). With a window, each block of rows gathers just the
keys that it may see; without one it walks over the whole capacity. Values behind a sequence's end are zeroed, so that
whatever stands there (NaN too) can't leak.

Packed queries are spread to (batch, max_seqlen_q) first: give max_seqlen_q, or every sequence counts as the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flash_attn3_sm121.call import ForwardArgs
from flash_attn3_sm121.fallback import append, blocked, masks, rotary, sinks
from flash_attn3_sm121.fallback import geometry as cuts
from flash_attn3_sm121.fallback.blocked import Online, Scoring
from flash_attn3_sm121.fallback.gather import dequantised
from flash_attn3_sm121.fallback.host import rotated_queries
from flash_attn3_sm121.fallback.problem import FP8, Facts, facts


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """(batch,) tensors: queries and keys in use, and where keys start in their row (or packed tensor)."""

    rows: Tensor
    keys: Tensor
    start: Tensor


def _lengths(args: ForwardArgs, info: Facts) -> Lengths:
    device = args.q.device

    def full(value: int) -> Tensor:
        return torch.full((info.batch,), value, dtype=torch.long, device=device)

    cu_q, cu_k = args.cu_seqlens_q, args.cu_seqlens_k
    rows = (cu_q[1:] - cu_q[:-1]).long() if cu_q is not None else full(info.rows)
    start = cu_k[:-1].long() if cu_k is not None else full(0)
    keys = (cu_k[1:] - cu_k[:-1]).long() if cu_k is not None else full(info.capacity)
    if args.seqused_q is not None:
        rows = args.seqused_q.long()
    if args.seqused_k is not None:
        keys = args.seqused_k.long()
    if args.k_new is not None:
        new = args.cu_seqlens_k_new
        keys = keys + ((new[1:] - new[:-1]).long() if new is not None else info.new_rows)
    if args.leftpad_k is not None:
        start, keys = start + args.leftpad_k, keys - args.leftpad_k
    return Lengths(rows=rows, keys=keys.clamp(min=0), start=start)


def _check(args: ForwardArgs, info: Facts) -> None:
    """Stream-ordered: the device stops before the write when a cache would overflow or a page is missing."""
    if args.k_new is None:
        return
    owner, position, _ = append.places(args, info)
    if position.numel() == 0:
        return
    fits = (position >= 0) & (position < info.capacity)
    rows, _slots = append.pages_of(args, info, owner, position.clamp(0, info.capacity - 1))
    fits = fits & (rows >= 0) & (rows < args.k.shape[0])
    message = "flash_attn_with_kvcache: cache_seqlens + new tokens exceed the cache, or a page is not allocated"
    torch._assert_async(fits.all(), message)


def _spread(args: ForwardArgs, tensor: Tensor, info: Facts) -> Tensor:
    """Packed rows as (batch, rows, ...); what stands behind a sequence's end is never used."""
    if args.cu_seqlens_q is None:
        return tensor
    steps = torch.arange(info.rows, device=tensor.device)
    index = args.cu_seqlens_q[:-1, None].long() + steps
    return tensor[index.clamp(0, max(tensor.shape[0] - 1, 0))]


def _converted_queries(args: ForwardArgs, tensor: Tensor, info: Facts) -> Tensor:
    converted = _spread(args, tensor, info).to(info.compute_dtype)
    if args.q_descale is None or args.q.dtype not in FP8:
        return converted
    return converted * args.q_descale.to(converted.dtype).repeat_interleave(info.group, dim=-1)[:, None, :, None]


class Keys:
    """Blocks of keys or values by their number within the sequence, in the compute type."""

    def __init__(self, args: ForwardArgs, info: Facts, lengths: Lengths) -> None:
        self.args, self.info, self.lengths = args, info, lengths
        self.indirect = info.packed_k or info.paged or args.leftpad_k is not None or args.kv_batch_idx is not None

    def _places(self, numbers: Tensor) -> tuple[Tensor, ...]:
        """Index tensors into the cache for key numbers (batch, n); numbers out of range are clamped."""
        args, info = self.args, self.info
        position = self.lengths.start[:, None] + numbers
        if info.packed_k:
            return (position.clamp(0, args.k.shape[0] - 1),)
        owner = torch.arange(info.batch, device=numbers.device)[:, None].expand_as(position)
        rows, slots = append.pages_of(args, info, owner, position.clamp(0, info.capacity - 1))
        return rows.clamp(0, args.k.shape[0] - 1), slots

    def block(self, numbers: Tensor, key: int | None) -> tuple[Tensor, Tensor]:
        """(keys, values) as (batch, n, Hk, d) for key numbers (batch, n); `key`: they are key, key + 1, ... alike."""
        args, info = self.args, self.info
        if key is not None and not self.indirect:
            span = slice(key, key + numbers.shape[1])
            k, v = args.k[: info.batch, span], args.v[: info.batch, span]
        else:
            where = self._places(numbers)
            k, v = (_take(tensor, where) for tensor in (args.k, args.v))
        k = dequantised(k, args.k_descale, heads=info.kv_heads, dtype=info.compute_dtype)
        v = dequantised(v, args.v_descale, heads=info.kv_heads, dtype=info.compute_dtype)
        used = (numbers < self.lengths.keys[:, None])[:, :, None, None]
        zero = torch.zeros((), dtype=info.compute_dtype, device=k.device)
        return torch.where(used, k, zero), torch.where(used, v, zero)


def _take(tensor: Tensor, where: tuple[Tensor, ...]) -> Tensor:
    if tensor.dtype in FP8:
        return tensor.view(torch.uint8)[where].view(tensor.dtype)
    return tensor[where]


def _span(info: Facts, rows: int) -> int:
    """An upper bound on the keys that a block of rows sees."""
    band, bounds = info.band, [info.capacity]
    if band.left >= 0 and band.right >= 0:
        bounds.append(rows + band.left + band.right)
    if band.chunk > 0:
        bounds.append((rows // band.chunk + 2) * band.chunk)
    return min(bounds)


def _first(info: Facts, position: Tensor) -> Tensor | None:
    """The first key that a block whose first row is at `position` (batch,) may see; None: the same for all, 0."""
    band, bounds = info.band, []
    if band.left >= 0 and band.right >= 0:
        bounds.append(position - band.left)
    if band.chunk > 0:
        bounds.append(torch.div(position, band.chunk, rounding_mode="floor") * band.chunk)
    if not bounds:
        return None
    first = bounds[0] if len(bounds) == 1 else torch.maximum(*bounds)
    return first.clamp(min=0)


def _attend(
    q: Tensor, qv: Tensor | None, keys: Keys, lengths: Lengths, info: Facts, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """q (batch, rows, H, d) to out (batch, rows, H, dv) and lse (batch, H, rows) in the sum's type."""
    kind = blocked.accumulator(q.dtype)
    out = q.new_zeros((info.batch, info.rows, info.heads, info.dim_v), dtype=kind)
    lse = q.new_full((info.batch, info.heads, info.rows), -torch.inf, dtype=kind)
    shift = lengths.keys - lengths.rows
    for row in range(0, info.rows, cuts.BLOCK_ROWS):
        end = min(row + cuts.BLOCK_ROWS, info.rows)
        count = end - row
        positions = shift[:, None] + torch.arange(row, end, device=q.device)
        folded = blocked.fold(q[:, row:end].to(kind), info.kv_heads)
        folded_v = blocked.fold(qv[:, row:end].to(kind), info.kv_heads) if qv is not None else None
        online = Online(folded, info.dim_v)
        first = _first(info, positions[:, 0])
        span = _span(info, count)
        step = blocked.key_step(info.batch, info.heads, count)
        for key in range(0, span, step):
            numbers = torch.arange(key, min(key + step, span), device=q.device).expand(info.batch, -1)
            if first is not None:
                numbers = numbers + first[:, None]
            k, v = keys.block(numbers, key if first is None else None)
            k, v = k.to(kind).transpose(1, 2), v.to(kind).transpose(1, 2)
            products = folded @ k.transpose(-1, -2)
            if folded_v is not None:
                products += folded_v @ v.transpose(-1, -2)
            seen = masks.visible(positions[:, :, None], numbers[:, None], lengths.keys[:, None, None], info.band)
            online.add(blocked.hide(scoring.apply(products), seen, count), v)
        block_out, block_lse = online.result()
        out[:, row:end] = blocked.unfold(block_out, count)
        lse[:, :, row:end] = block_lse.reshape(info.batch, info.heads, count)
    return out, lse


def _finish(args: ForwardArgs, info: Facts, lengths: Lengths, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Rows behind a sequence's used end become 0 and -inf; packed rows go back to their places."""
    if args.cu_seqlens_q is None:
        used = torch.arange(info.rows, device=out.device) < lengths.rows[:, None]
        out = out.masked_fill_(~used[:, :, None, None], 0.0)
        return out.to(info.out_dtype), lse.masked_fill_(~used[:, None], -torch.inf).to(torch.float32)
    owner, index = rotary.token_places(args.cu_seqlens_q, args.q.shape[0])
    used = (index < lengths.rows[owner]) & (index < info.rows)
    index = index.clamp(0, max(info.rows - 1, 0))
    packed = out[owner, index].masked_fill_(~used[:, None, None], 0.0)
    packed_lse = lse[owner, :, index].masked_fill_(~used[:, None], -torch.inf)
    return packed.to(info.out_dtype), packed_lse.transpose(0, 1).to(torch.float32).contiguous()


def forward(args: ForwardArgs, *, check: bool = True) -> tuple[Tensor, Tensor]:
    """(out, lse). Values are trusted, except that a write is preceded by an assertion on the device (`check`)."""
    info = facts(args)
    if check:
        _check(args, info)
    new = append.prepare(args, info)
    q = rotated_queries(args, info)
    if new is not None:
        append.write(args, new)
    out_shape = (*args.q.shape[:-1], info.dim_v)
    if info.batch == 0 or info.rows == 0 or args.q.numel() == 0:
        out = args.q.new_zeros(out_shape, dtype=info.out_dtype)
        rows = (info.heads, args.q.shape[0]) if info.packed_q else (info.batch, info.heads, info.rows)
        lse = torch.full(rows, -torch.inf, dtype=torch.float32, device=args.q.device)
    else:
        lengths = _lengths(args, info)
        queries = _converted_queries(args, q, info)
        qv = _converted_queries(args, args.qv, info) if args.qv is not None else None
        scoring = Scoring(scale=args.softmax_scale, softcap=args.softcap)
        out, lse = _attend(queries, qv, Keys(args, info, lengths), lengths, info, scoring)
        if args.s_aux is not None:
            out, lse = sinks.include(out, lse, args.s_aux)
        out, lse = _finish(args, info, lengths, out, lse)
    if not info.has_keys and args.s_aux is None:
        lse = torch.full_like(lse, torch.inf)
    if args.out is not None:
        args.out.copy_(out)
        return args.out, lse
    return out.contiguous(), lse
