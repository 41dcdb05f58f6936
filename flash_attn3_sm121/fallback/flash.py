"""torch's own FlashAttention on CUDA: packed sequences, caches with lengths and windows in one launch, read in place.

Nothing is read on the host. One query a sequence (decoding) has its window made a shorter cache, and pages, or a cache
that would make too few jobs, are cut into parts that are sequences of their own and merged by LSE. Pages below several
queries, fp8, and values narrower than keys are copied first, some sequences at a time.

The operators are private to torch, so each kind of call is tried and compared once (`trial.py`). Where a row sees no
key they give the LSE +inf, and we -inf.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.fallback import sinks
from flash_attn3_sm121.fallback.append import cache_rows
from flash_attn3_sm121.fallback.attend import clear_zeros, padded, row_delta
from flash_attn3_sm121.fallback.gather import dequantised
from flash_attn3_sm121.fallback.geometry import Geometry
from flash_attn3_sm121.fallback.keys import Lengths, first_key, gathered, span_of, spread
from flash_attn3_sm121.fallback.problem import FP8, Facts

TYPES = (torch.bfloat16, torch.float16)
MOST_DIM = 256
ALIGNMENT = 8  # elements: the kernels read 16 bytes at a time
# A part of fewer keys costs more in partial results than a copy of it does.
LEAST_PART = 64
# A cache of more keys than SPLIT_KEYS is cut up where it makes fewer jobs than keep a device busy; a CUDA grid allows
# so many sequences at a time.
JOBS, SPLIT_KEYS, MOST_SEQUENCES = 256, 1024, 65535
COPY_BYTES = 1 << 28
_Args = TypeVar("_Args", ForwardArgs, BackwardArgs)


class Kernel:
    """The operators, with sequences packed (T, H, d) by offsets (B + 1,), or dense (B, S, H, d) without.

    The last query stands at the last key; -1 is no limit on a side. The LSE is (H, T), or (B, H, S).
    """

    def forward(
        self,
        tensors: tuple[Tensor, Tensor, Tensor],
        offsets: tuple[Tensor | None, Tensor | None],
        longest: tuple[int, int],
        window: tuple[int, int],
        scale: float,
        used: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(out, lse) of (q, k, v); `used` (B,): how many keys from an offset on, and the offsets need not rise then."""
        results = torch.ops.aten._flash_attention_forward.default(
            *(*tensors, *offsets, *longest, 0.0, window == (-1, 0), False),
            **{"scale": scale, "window_size_left": window[0], "window_size_right": window[1], "seqused_k": used},
        )
        return results[0], results[1]

    def backward(
        self,
        tensors: tuple[Tensor, ...],
        offsets: tuple[Tensor | None, Tensor | None],
        longest: tuple[int, int],
        window: tuple[int, int],
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(dq, dk, dv) from (dout, q, k, v, out, lse)."""
        state = torch.zeros(2, dtype=torch.uint64, device=tensors[0].device)  # of the dropout, which there is none of
        dq, dk, dv = torch.ops.aten._flash_attention_backward.default(
            *(*tensors, *offsets, *longest, 0.0, window == (-1, 0), state, state[0]),
            **{"scale": scale, "window_size_left": window[0], "window_size_right": window[1]},
        )
        return dq, dk, dv


def _aligned(*tensors: Tensor) -> bool:
    """Whether the kernels can read the tensors: dense last dimension, and no row that starts between 16 bytes."""
    return all(
        tensor.stride(-1) == 1
        and tensor.data_ptr() % 16 == 0
        and all(stride % ALIGNMENT == 0 for stride in tensor.stride()[:-1])
        for tensor in tensors
    )


def _ready(tensor: Tensor) -> Tensor:
    return tensor if _aligned(tensor) else tensor.clone(memory_format=torch.contiguous_format)


def serves(args: ForwardArgs | BackwardArgs, info: Facts) -> bool:
    """Whether the operators can compute a call. Shapes, types and arguments that are no tensors decide it."""
    kinds = {tensor.dtype for tensor in (args.q, args.k, args.v)}
    if info.out_dtype not in TYPES or not kinds <= {info.out_dtype, *FP8}:
        return False
    if args.qv is not None or args.softcap > 0 or args.attention_chunk > 0 or args.seqused_q is not None:
        return False
    fits = info.dim % ALIGNMENT == 0 and info.dim <= MOST_DIM and info.dim_v <= info.dim
    if not fits or not info.has_keys or info.batch == 0 or info.rows == 0 or args.q.numel() == 0:
        return False
    if isinstance(args, ForwardArgs):
        return True
    alike = info.packed_q == info.packed_k and info.dim_v == info.dim and len(kinds) == 1
    return alike and args.seqused_k is None and args.dlse is None


def _window(info: Facts) -> tuple[int, int]:
    """The mask. One row stands at the last key; a limit on its right would keep the kernels from folding groups."""
    return info.band.left, info.band.right if info.rows > 1 else -1


def _lse(lse: Tensor) -> Tensor:
    """-inf for rows that see nothing."""
    return lse.nan_to_num(nan=torch.nan, posinf=-torch.inf, neginf=-torch.inf)


def is_dense(args: ForwardArgs, info: Facts) -> bool:
    """Whether shapes alone say which keys there are, and they can be read as they lie."""
    lengths = (args.cu_seqlens_q, args.cu_seqlens_k, args.seqused_k, args.leftpad_k, args.kv_batch_idx, args.page_table)
    alike = args.q.dtype == args.k.dtype == args.v.dtype and info.kv_rows == info.batch
    return alike and all(tensor is None for tensor in lengths)


def dense(kernel: Kernel, args: ForwardArgs, q: Tensor, info: Facts) -> tuple[Tensor, Tensor]:
    """(out, lse) of a dense call."""
    k, v = (
        dequantised(x, scale, slice(None), heads=info.kv_heads, dtype=info.out_dtype)
        for x, scale in ((args.k, args.k_descale), (args.v, args.v_descale))
    )
    tensors = _ready(q), _ready(k), _ready(padded(v, info.dim))
    out, lse = kernel.forward(tensors, (None, None), (info.rows, info.capacity), _window(info), args.softmax_scale)
    return out[..., : info.dim_v], _lse(lse)


def _with_dense_offsets(args: _Args) -> _Args:
    """The call with offsets that lie one behind the other, as the operators want them."""
    offsets = {name: getattr(args, name) for name in ("cu_seqlens_q", "cu_seqlens_k")}
    strided = {name: x.contiguous() for name, x in offsets.items() if x is not None and not x.is_contiguous()}
    return replace(args, **strided) if strided else args


def _steps(count: int, step: int, device: torch.device) -> Tensor:
    """The offsets (count + 1,) of sequences that are `step` apart."""
    if step == 0:
        return torch.zeros(count + 1, dtype=torch.int32, device=device)
    return torch.arange(0, (count + 1) * step, step, dtype=torch.int32, device=device)


def _offsets(starts: Tensor) -> Tensor:
    """Where sequences start (n,), as the operators want it: int32, and one more."""
    return functional.pad(starts.to(torch.int32), (0, 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cache:
    """A cache as tokens (n, Hk, d), and how many of them lie between its rows, or pages."""

    k: Tensor
    v: Tensor
    apart: int

    @classmethod
    def of(cls, args: ForwardArgs, info: Facts) -> Cache | None:
        """Views; None where the kernels cannot read the cache as it lies."""
        k, v = args.k, args.v
        if not k.dtype == v.dtype == info.out_dtype or info.dim != info.dim_v or not _aligned(k, v):
            return None
        if info.packed_k:
            return cls(k=k, v=v, apart=0)
        if any(cache.stride(1) == 0 or cache.stride(0) % cache.stride(1) for cache in (k, v)):
            return None
        apart = {cache.stride(0) // cache.stride(1) for cache in (k, v)}
        if len(apart) > 1:
            return None
        (between,) = apart
        count = (k.shape[0] - 1) * between + k.shape[1]
        k, v = (cache.as_strided((count, *cache.shape[2:]), cache.stride()[1:]) for cache in (k, v))
        return cls(k=k, v=v, apart=between)


def attend(kernel: Kernel, args: ForwardArgs, q: Tensor, info: Facts, lengths: Lengths) -> tuple[Tensor, Tensor]:
    """q (B, R, H, d), or packed (T, H, d), to out and lse (B, H, R), or (H, T).

    Packed queries of one row each come back as (B, 1, H, dv) and (B, H, 1).
    """
    args = _with_dense_offsets(args)
    if info.rows == 1:  # for one row at most, the operators take the rows as the sequences
        q = spread(args, q, info)
    cache, call = Cache.of(args, info), Call(kernel=kernel, args=args, q=_ready(q), info=info, lengths=lengths)
    if cache is None:
        return call.copied()
    single, jobs = q.dim() == 4 and info.rows == 1, info.batch * info.kv_heads
    if info.paged:
        whole = single and info.page_size >= LEAST_PART and args.leftpad_k is None
        return call.parts(cache, info.page_size) if whole else call.copied()
    if single and info.group == 1 and jobs < JOBS and info.capacity > SPLIT_KEYS:  # the operators split groups only
        return call.parts(cache, max(-(-info.capacity * jobs // JOBS), LEAST_PART))
    return call.in_place(cache)


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A forward call with lengths: the ways to show its keys to the operators."""

    kernel: Kernel
    args: ForwardArgs
    q: Tensor
    info: Facts
    lengths: Lengths

    def _window(self) -> tuple[tuple[int, int], Tensor | None]:
        """The mask, and the first key (B,) where a window of one row is a matter of where its keys start."""
        info = self.info
        if info.rows > 1:
            return _window(info), None
        if info.band.left < 0:
            return (-1, -1), None
        return (-1, -1), (self.lengths.keys - (info.band.left + 1)).clamp(min=0)

    def _rows(self, batch: slice) -> tuple[Tensor, Tensor]:
        """The queries of some sequences (n, H, d), and their offsets."""
        if self.args.cu_seqlens_q is not None and self.q.dim() == 3:
            return self.q, self.args.cu_seqlens_q[batch.start : batch.stop + 1]
        q = self.q[batch]
        return q.flatten(0, 1), _steps(len(q), q.shape[1], q.device)

    def _shaped(self, out: Tensor, lse: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """What the operators return, laid out like the queries."""
        if self.q.dim() == 3:
            return out, _lse(lse)
        out = out.view(count, self.info.rows, *out.shape[1:])
        return out, _lse(lse).view(self.info.heads, count, -1).transpose(0, 1)

    def in_place(self, cache: Cache) -> tuple[Tensor, Tensor]:
        """One launch over the cache as it lies."""
        args, info, keys = self.args, self.info, self.lengths.keys
        window, first = self._window()
        q, rows = self._rows(slice(0, info.batch))
        start, used = self.lengths.start, None
        if first is not None:
            start, keys = first if start is None else start + first, keys - first
        if not info.packed_k and (start is not None or args.kv_batch_idx is not None):
            row = cache_rows(args, info) * cache.apart
            start = row if start is None else row + start
        if start is None:
            offsets = _steps(info.batch, cache.apart, q.device)
        elif args.cu_seqlens_k is not None and first is None and args.leftpad_k is None:
            offsets = args.cu_seqlens_k
        else:
            offsets = _offsets(start)
        if args.cu_seqlens_k is None or first is not None or args.seqused_k is not None or args.leftpad_k is not None:
            used = keys.to(torch.int32)
        longest = info.capacity if first is None else min(info.capacity, info.band.left + 1)
        tensors = (q, cache.k, cache.v)
        out, lse = self.kernel.forward(tensors, (rows, offsets), (info.rows, longest), window, args.softmax_scale, used)
        return self._shaped(out, lse, info.batch)

    def parts(self, cache: Cache, length: int) -> tuple[Tensor, Tensor]:
        """One row a sequence, whose keys are cut into parts of `length`, or pages, that are sequences of their own."""
        args, info, keys = self.args, self.info, self.lengths.keys[:, None]
        _, first = self._window()
        count = -(-info.capacity // length)
        number = torch.arange(count, device=self.q.device).expand(info.batch, -1)
        if first is not None:
            count = min(count, (info.band.left + length - 1) // length + 1)
            number = number[:, :count] + first[:, None] // length
        start, row = number * length, cache_rows(args, info)[:, None]
        used = (keys - start).clamp(0, length)
        if args.page_table is not None:
            page = args.page_table[row, number.clamp(max=args.page_table.shape[1] - 1)].long()
            where = page.clamp(0, args.k.shape[0] - 1) * cache.apart
        else:
            where = row * cache.apart + start if not info.packed_k else start
            where = where if self.lengths.start is None else where + self.lengths.start[:, None]
        if first is not None:
            skipped = (first[:, None] - start).clamp(0, length)
            where, used = where + skipped, (used - skipped).clamp(min=0)
        outs, lses, step = [], [], max(MOST_SEQUENCES // count, 1)
        for begin in range(0, info.batch, step):
            batch = slice(begin, min(begin + step, info.batch))
            # A group's heads are the rows of a part.
            folded = self.q[batch].view(-1, 1, info.kv_heads, info.group, info.dim).transpose(2, 3)
            q = folded.expand(-1, count, -1, -1, -1).flatten(0, 2)
            offsets = _steps(len(q) // info.group, info.group, q.device), _offsets(where[batch].flatten())
            out, lse = self.kernel.forward(
                *((q, cache.k, cache.v), offsets, (info.group, length), (-1, -1), args.softmax_scale),
                used[batch].flatten().to(torch.int32),
            )
            out = out.view(len(folded), count, info.group, info.kv_heads, -1)
            lse = _lse(lse).view(info.kv_heads, -1, count, info.group).permute(1, 2, 3, 0)
            total = lse.logsumexp(1, keepdim=True)
            share = (lse - total.clamp(min=torch.finfo(lse.dtype).min)).exp()
            out, lse = out.mul_(share.unsqueeze(-1)).sum(1), total.squeeze(1)
            outs.append(out.transpose(1, 2).reshape(-1, 1, info.heads, info.dim))
            lses.append(lse.transpose(1, 2).reshape(-1, info.heads, 1))
        return torch.cat(outs), torch.cat(lses)

    def copied(self) -> tuple[Tensor, Tensor]:
        """Some sequences at a time, whose keys are copied out of pages, or into the type of the queries."""
        args, lengths = self.args, self.lengths
        info = replace(self.info, compute_dtype=self.info.out_dtype)
        span, first = span_of(info, 0, info.rows), None
        if span < info.capacity:
            first = first_key(info, lengths.keys - lengths.rows)
        window, _ = self._window()
        keys = (lengths.keys if first is None else lengths.keys - first).clamp(0, span).to(torch.int32)
        step = max(COPY_BYTES // (span * info.kv_heads * info.dim * 2), 1)
        outs, lses = [], []
        for begin in range(0, info.batch, step):
            batch = slice(begin, min(begin + step, info.batch))
            count = batch.stop - begin
            k, v = (_ready(padded(x, info.dim).flatten(0, 1)) for x in self._copies(info, batch, first, span))
            q, rows = self._rows(batch)
            offsets = rows, _steps(count, span, q.device)
            out, lse = self._shaped(
                *self.kernel.forward(*((q, k, v), offsets, (info.rows, span), window, args.softmax_scale), keys[batch]),
                count,
            )
            outs.append(out[..., : info.dim_v])
            lses.append(lse)
        if self.q.dim() == 4 or len(outs) == 1:
            return torch.cat(outs), torch.cat(lses, 0 if self.q.dim() == 4 else 1)
        return self._together(outs, lses, step)

    def _copies(self, info: Facts, batch: slice, first: Tensor | None, span: int) -> tuple[Tensor, Tensor]:
        """Keys and values (n, span, Hk, d | dv) of some sequences, in the type of the queries."""
        args, start = self.args, self.lengths.start
        if not (info.packed_k or info.paged) and first is start is args.kv_batch_idx is None:  # rows of the cache
            k, v = (
                dequantised(x[batch], s, batch, heads=info.kv_heads, dtype=info.compute_dtype)
                for x, s in ((args.k, args.k_descale), (args.v, args.v_descale))
            )
            return k, v
        numbers = torch.arange(span, device=self.q.device).expand(batch.stop - batch.start, -1)
        if first is not None:
            numbers = numbers + first[batch, None]
        return gathered(args, info, self.lengths, numbers, batch)

    def _together(self, outs: list[Tensor], lses: list[Tensor], step: int) -> tuple[Tensor, Tensor]:
        """Of packed queries each launch has written the rows of its own sequences only."""
        assert self.args.cu_seqlens_q is not None
        token = torch.arange(self.q.shape[0], device=self.q.device)
        out, lse = outs[0], lses[0]
        for turn in range(1, len(outs)):
            later = token >= self.args.cu_seqlens_q[turn * step]
            out = torch.where(later[:, None, None], outs[turn], out)
            lse = torch.where(later, lses[turn], lse)
        return out, lse


def backward(kernel: Kernel, args: BackwardArgs, info: Facts) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(dq, dk, dv, ds_aux); rows and keys of a packed call that belong to no sequence get zeros."""
    args = _with_dense_offsets(args)
    rows = [_ready(tensor.to(info.out_dtype)) for tensor in (args.dout, args.q, args.k, args.v, args.out)]
    lse = args.softmax_lse.nan_to_num(nan=torch.nan, posinf=torch.inf, neginf=torch.inf).contiguous()
    offsets = args.cu_seqlens_q, args.cu_seqlens_k
    tensors = (*rows, lse)
    gradients = kernel.backward(tensors, offsets, (info.rows, info.capacity), _window(info), args.softmax_scale)
    for gradient, offset in zip(gradients, (offsets[0], offsets[1], offsets[1]), strict=True):
        if offset is not None:
            beyond = torch.arange(gradient.shape[0], device=gradient.device) >= offset[-1]
            gradient.masked_fill_(beyond[:, None, None], 0)
    dq, dk, dv = gradients
    if not info.packed_q:
        geometry = Geometry.bottom_right(rows=info.rows, keys=info.capacity, band=info.band)
        clear_zeros(rows[4], rows[3], geometry, dq, dk)
    if args.s_aux is None:
        return dq, dk, dv, None
    lse, dout, out = args.softmax_lse, args.dout, args.out
    if info.packed_q:
        lse, dout, out = lse.unsqueeze(0), dout.unsqueeze(0), out.unsqueeze(0)
    return dq, dk, dv, sinks.gradient(lse, row_delta(dout, out), args.s_aux).to(args.s_aux.dtype)
