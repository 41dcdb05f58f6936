"""The forward pass without reading a length: for decoding on CUDA, where waiting for the device costs more than work.

Shapes decide every loop; lengths stay tensors and only steer masks and indices, so the call neither synchronises nor
changes its launches from step to step (a CUDA graph can capture it). With a window, each block of rows gathers just the
keys that it may see; without one it walks over the whole capacity. Values behind a sequence's end are zeroed, so that
whatever stands there (NaN too) can't leak. torch's fused kernel does the arithmetic where it may (`static_kernel.py`).

Packed queries are spread to (batch, max_seqlen_q) first: give max_seqlen_q, or every sequence counts as the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flash_attn3_sm121.call.arguments import ForwardArgs
from flash_attn3_sm121.fallback import append, blocked, kernels, masks, rotary, sinks, static_kernel
from flash_attn3_sm121.fallback import geometry as cuts
from flash_attn3_sm121.fallback.blocked import Online, Scoring
from flash_attn3_sm121.fallback.gather import dequantised
from flash_attn3_sm121.fallback.host import rotated_queries
from flash_attn3_sm121.fallback.problem import FP8, Facts, facts
from flash_attn3_sm121.fallback.selfcheck import Kernel

# Where the fused kernel is asked for. On a CPU this file runs in tests only, most of them of its plain arithmetic.
FUSED_ON = ("cuda",)


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


def _lengths(args: ForwardArgs, info: Facts) -> Lengths:
    cu_q, cu_k = args.cu_seqlens_q, args.cu_seqlens_k
    rows: Tensor | int = (cu_q[1:] - cu_q[:-1]).long() if cu_q is not None else info.rows
    if args.seqused_q is not None:
        rows = args.seqused_q.long()
    start = cu_k[:-1].long() if cu_k is not None else None
    if args.seqused_k is not None:
        keys = args.seqused_k.long()
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
    return Lengths(rows=rows, keys=keys.clamp(min=0), start=start)


def _check(args: ForwardArgs, info: Facts) -> None:
    """Stream-ordered: the device stops before the write when a cache would overflow or a page is missing.

    Rows with a negative cache_seqlens are padding; nothing is written for them.
    """
    if args.k_new is None or info.new_rows == 0 or info.batch == 0:
        return
    held, message = args.seqused_k, "cache_seqlens + new tokens exceed the cache, or a page is not allocated"
    others = (args.page_table, args.kv_batch_idx, args.cu_seqlens_k_new)
    if held is not None and info.batch <= info.kv_rows and all(tensor is None for tensor in others):
        fits = held <= info.capacity - info.new_rows  # the same in fewer launches
    else:
        owner, position, _, any_token = append.places(args, info)
        fits = position < info.capacity
        rows, _slots = append.pages_of(args, info, owner, position.clamp(0, max(info.capacity - 1, 0)))
        fits = (fits & (rows >= 0) & (rows < args.k.shape[0])) | ~any_token
    torch._assert_async(fits.all(), f"flash_attn_with_kvcache: {message}")


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


def _words(tensor: Tensor) -> Tensor:
    """The same memory in elements of eight bytes, where it divides so: fewer of them are copied in less time.

    fp8 comes as bytes at least, torch can't index it. Two elements a row or more, so that a copy's last stride is 1.
    """
    each = 8 // tensor.element_size()
    places = (*tensor.stride()[:-1], tensor.storage_offset(), tensor.shape[-1] % (2 * each))
    if tensor.stride(-1) == 1 and not any(place % each for place in places) and tensor.data_ptr() % 8 == 0:
        return tensor.view(torch.int64)
    return tensor.view(torch.uint8) if tensor.dtype in FP8 else tensor


class Keys:
    """Blocks of keys and values by their number within the sequence, in the compute type."""

    def __init__(self, args: ForwardArgs, info: Facts, lengths: Lengths) -> None:
        self.args, self.info, self.lengths = args, info, lengths
        self.words = _words(args.k), _words(args.v)
        self.indirect = info.packed_k or info.paged or args.leftpad_k is not None or args.kv_batch_idx is not None
        self.all_used = args.seqused_k is None and not info.packed_k and args.leftpad_k is None
        self.converted = any(tensor.dtype != info.compute_dtype for tensor in (args.k, args.v))
        self._zeros: dict[torch.dtype, Tensor] = {}

    def _places(self, numbers: Tensor) -> tuple[Tensor, ...]:
        """Index tensors into the cache for key numbers (batch, n); numbers out of range are clamped."""
        args, info = self.args, self.info
        position = numbers if self.lengths.start is None else self.lengths.start[:, None] + numbers
        if info.packed_k:
            return (position.clamp(0, args.k.shape[0] - 1),)
        owner = torch.arange(info.batch, device=numbers.device)[:, None].expand_as(position)
        rows, slots = append.pages_of(args, info, owner, position.clamp(0, info.capacity - 1))
        return rows.clamp(0, args.k.shape[0] - 1), slots

    def block(self, numbers: Tensor, key: int | None, unused: Tensor | None) -> tuple[Tensor, Tensor]:
        """(keys, values) as (batch, n, Hk, d) for key numbers (batch, n); `key`: they are key, key + 1, ... alike.

        Zeros stand where `unused` (batch, n) is true; None: all are in use.
        """
        if key is not None and not self.indirect:
            span = slice(key, key + numbers.shape[1])
            k, v = (words[: self.info.batch, span] for words in self.words)
            if unused is not None:
                k, v = self._zeroed(k, unused), self._zeroed(v, unused)
        else:
            where = self._places(numbers)
            k, v = (words[where] for words in self.words)
            if unused is not None:
                k, v = (copy.masked_fill_(unused[:, :, None, None], 0) for copy in (k, v))
        return self._typed(k, self.args.k, self.args.k_descale), self._typed(v, self.args.v, self.args.v_descale)

    def _zeroed(self, words: Tensor, unused: Tensor) -> Tensor:
        """The elements, those of unused tokens 0. One pass makes them; copying and then filling would take two."""
        if words.dtype not in self._zeros:
            self._zeros[words.dtype] = torch.zeros((), dtype=words.dtype, device=words.device)
        return torch.where(unused[:, :, None, None], self._zeros[words.dtype], words)

    def _typed(self, words: Tensor, cache: Tensor, descale: Tensor | None) -> Tensor:
        if words.dtype != cache.dtype:
            words = (words if words.stride(-1) == 1 else words.contiguous()).view(cache.dtype)
        return dequantised(words, descale, heads=self.info.kv_heads, dtype=self.info.compute_dtype)


def _span(info: Facts, row: int, count: int) -> int:
    """An upper bound on the keys that rows `[row, row + count)` see, from the first one on."""
    band, bounds = info.band, [info.capacity]
    if band.left >= 0:
        behind = info.rows - 1 - row  # no key stands behind the last row
        bounds.append(band.left + 1 + (min(count - 1 + band.right, behind) if band.right >= 0 else behind))
    if band.chunk > 0:
        bounds.append(((count + band.chunk - 2) // band.chunk + 1) * band.chunk)
    return min(bounds)


def _first(info: Facts, position: Tensor) -> Tensor:
    """The first key that a block whose first row is at `position` (batch,) may see, in a window or a chunk."""
    band, bounds = info.band, []
    if band.left >= 0:
        bounds.append(position - band.left)
    if band.chunk > 0:
        bounds.append(torch.div(position, band.chunk, rounding_mode="floor") * band.chunk)
    first = bounds[0] if len(bounds) == 1 else torch.maximum(*bounds)
    return first.clamp(min=0)


class Plain:
    """One block of query rows (batch, R, H, d), one block of keys after the other, in plain arithmetic."""

    def __init__(
        self, q: Tensor, qv: Tensor | None, info: Facts, scoring: Scoring, *, positions: Tensor, keys: Tensor
    ) -> None:
        self.info, self.scoring, self.positions, self.keys = info, scoring, positions, keys
        self.kind, self.rows = blocked.accumulator(q.dtype), q.shape[1]
        self.folded = blocked.fold(q.to(self.kind), info.kv_heads)
        self.folded_v = blocked.fold(qv.to(self.kind), info.kv_heads) if qv is not None else None
        self.online = Online(self.folded, info.dim_v)

    def key_step(self, span: int, *, copied: bool, masked: bool) -> int:
        return blocked.key_step(self.info.batch, self.info.heads, self.rows)

    def add(self, numbers: Tensor, unused: Tensor | None, k: Tensor, v: Tensor) -> None:
        k, v = k.to(self.kind).transpose(1, 2), v.to(self.kind).transpose(1, 2)
        products = self.folded @ k.transpose(-1, -2)
        if self.folded_v is not None:
            products += self.folded_v @ v.transpose(-1, -2)
        seen = masks.visible(self.positions[:, :, None], numbers[:, None], self.keys[:, None, None], self.info.band)
        self.online.add(blocked.hide(self.scoring.apply(products), seen, self.rows), v)

    def result(self) -> tuple[Tensor, Tensor]:
        out, lse = self.online.result()
        return blocked.unfold(out, self.rows), lse.reshape(self.info.batch, self.info.heads, self.rows)


def _walk(block: Plain | static_kernel.Fused, keys: Keys, info: Facts, span: int, first: Tensor | None) -> None:
    """Show a block of rows the keys that it may see: `span` of them from `first` (batch,) on, or from 0."""
    counts, clean = keys.lengths.keys, keys.all_used and first is None
    copied = not clean or keys.indirect or keys.converted
    step = block.key_step(span, copied=copied, masked=not clean or info.band.is_local)
    for key in range(0, span, step):
        numbers = torch.arange(key, min(key + step, span), device=counts.device).expand(info.batch, -1)
        if first is not None:
            numbers = numbers + first[:, None]
        unused = numbers >= counts[:, None] if not clean else None
        k, v = keys.block(numbers, key if first is None else None, unused)
        block.add(numbers, unused, k, v)


def _kernel(args: ForwardArgs, q: Tensor, info: Facts, scoring: Scoring) -> Kernel | None:
    """torch's fused kernel, if it may serve these queries (batch, rows, H, d)."""
    if q.device.type not in FUSED_ON or not info.has_keys:
        return None
    k, v = (tensor.unsqueeze(0) if info.packed_k else tensor for tensor in (args.k, args.v))
    return kernels.pick(q, k, v, args.qv, scoring)


def _attend(q: Tensor, qv: Tensor | None, keys: Keys, info: Facts, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """q (batch, rows, H, d) to out (batch, rows, H, dv), in q's type or the sum's, and lse (batch, H, rows)."""
    lengths, kernel = keys.lengths, _kernel(keys.args, q, info, scoring)
    if info.rows == 1:  # it stands at the last key: nothing is hidden behind it
        info = replace(info, band=replace(info.band, right=-1))
    step = cuts.BLOCK_ROWS if kernel is None else static_kernel.row_step(info)
    kind = blocked.accumulator(q.dtype)
    out, lse = None, None
    for row in range(0, info.rows, step):
        count = min(step, info.rows - row)
        span = _span(info, row, count)
        positions = lengths.positions(row, count) if kernel is None or info.band.is_local else None
        first = _first(info, positions[:, 0]) if positions is not None and span < info.capacity else None
        rows = slice(row, row + count)
        block: Plain | static_kernel.Fused
        if kernel is not None:
            seen = static_kernel.limits(info, positions, lengths.keys, gathered=first is not None)
            block = static_kernel.Fused(kernel, q[:, rows], info, seen, scale=scoring.scale)
        else:
            assert positions is not None
            mine = qv[:, rows] if qv is not None else None
            block = Plain(q[:, rows], mine, info, scoring, positions=positions, keys=lengths.keys)
        _walk(block, keys, info, span, first)
        part, part_lse = block.result()
        if count == info.rows:
            return part, part_lse
        if out is None or lse is None:
            out = part.new_empty((info.batch, info.rows, *part.shape[2:]), dtype=q.dtype if kernel else kind)
            lse = part_lse.new_empty((info.batch, info.heads, info.rows))
        out[:, rows], lse[:, :, rows] = part, part_lse
    assert out is not None and lse is not None, "there are rows"
    return out, lse


def _finish(args: ForwardArgs, info: Facts, lengths: Lengths, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Rows behind a sequence's used end become 0 and -inf; packed rows go back to their places."""
    rows = lengths.rows
    if isinstance(rows, int):
        return out.to(info.out_dtype), lse.to(torch.float32)
    if args.cu_seqlens_q is None:
        used = torch.arange(info.rows, device=out.device) < rows[:, None]
        out = out.masked_fill_(~used[:, :, None, None], 0.0)
        return out.to(info.out_dtype), lse.masked_fill_(~used[:, None], -torch.inf).to(torch.float32)
    owner, index = rotary.token_places(args.cu_seqlens_q, args.q.shape[0])
    used = (index < rows[owner]) & (index < info.rows)
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
        out, lse = _attend(queries, qv, Keys(args, info, lengths), info, scoring)
        if args.s_aux is not None:
            out, lse = sinks.include(out, lse, args.s_aux)
        out, lse = _finish(args, info, lengths, out, lse)
    if not info.has_keys and args.s_aux is None:
        lse = torch.full_like(lse, torch.inf)
    if args.out is not None:
        args.out.copy_(out)
        return args.out, lse.contiguous()
    return out.contiguous(), lse.contiguous()
