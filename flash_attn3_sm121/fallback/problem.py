"""The facts of a call: what its shapes say, and, when lengths may be read, where each sequence lies."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.errors import CallError
from flash_attn3_sm121.fallback.geometry import Band

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the shapes alone say. `rows` and `capacity` are upper bounds on a sequence's queries and keys."""

    batch: int
    heads: int
    kv_heads: int
    dim: int
    dim_v: int
    rows: int
    capacity: int
    kv_rows: int
    new_rows: int
    page_size: int
    packed_q: bool
    packed_k: bool
    empty_k: bool  # k has no position at all, whatever the lengths say: upstream then gives LSE +inf
    out_dtype: torch.dtype
    compute_dtype: torch.dtype
    band: Band

    @property
    def paged(self) -> bool:
        return self.page_size > 0

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def has_keys(self) -> bool:
        """True if a sequence can have a key."""
        return self.capacity > 0 and self.kv_rows > 0


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The type that products are taken in: the promotion of all, fp32 for fp8 (exact, and the scales fit)."""
    dtypes = [tensor.dtype for tensor in tensors if tensor is not None]
    if any(dtype in FP8 for dtype in dtypes):
        return torch.float32
    result = dtypes[0]
    for dtype in dtypes[1:]:
        result = torch.promote_types(result, dtype)
    return result


def facts(args: ForwardArgs | BackwardArgs) -> Facts:
    """Read the shapes of a call."""
    q, k, v = args.q, args.k, args.v
    packed_q, packed_k = args.cu_seqlens_q is not None, args.cu_seqlens_k is not None
    table = args.page_table if isinstance(args, ForwardArgs) else None
    k_new = args.k_new if isinstance(args, ForwardArgs) else None
    batch = args.cu_seqlens_q.numel() - 1 if args.cu_seqlens_q is not None else q.shape[0]
    bound = args.max_seqlen_q if packed_q else q.shape[1]
    most = q.shape[0] if bound is None else int(bound)
    rows = min(most, q.shape[0]) if packed_q else most
    if table is not None:
        capacity, kv_rows = table.shape[1] * k.shape[1], table.shape[0]
    elif packed_k:
        capacity = k.shape[0] if args.max_seqlen_k is None else min(int(args.max_seqlen_k), k.shape[0])
        kv_rows = batch
    else:
        capacity, kv_rows = k.shape[1], k.shape[0]
    band = Band.normalised(
        left=args.window_left,
        right=args.window_right,
        chunk=args.attention_chunk,
        causal=args.causal,
        max_rows=most,  # as upstream: it decides what counts as a window, and so how rotary turns q
        capacity=capacity,
    )
    return Facts(
        batch=batch,
        heads=q.shape[-2],
        kv_heads=k.shape[-2],
        dim=q.shape[-1],
        dim_v=v.shape[-1],
        rows=rows,
        capacity=capacity,
        kv_rows=kv_rows,
        new_rows=0 if k_new is None else k_new.shape[-3],
        page_size=k.shape[1] if table is not None else 0,
        packed_q=packed_q,
        packed_k=packed_k,
        empty_k=k.numel() == 0,
        out_dtype=torch.bfloat16 if q.dtype in FP8 else q.dtype,
        compute_dtype=compute_dtype(q, k, v, args.qv),
        band=band,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequence:
    """Where one sequence of the batch lies: queries `[q_start, q_start + rows)` of its row (or of the packed
    tensor), keys `[k_start, k_start + keys)` of row `k_row` (dense, or of that row of the page table) or packed."""

    index: int
    q_start: int
    rows: int
    k_row: int
    k_start: int
    keys: int
    new_start: int = 0  # first new token in a packed k_new
    new_rows: int = 0
    new_position: int = 0  # where the new tokens go in the cache row, padding on the left included


def _read(tensor: Tensor | None) -> list[int] | None:
    return None if tensor is None else tensor.tolist()


def _read_offsets(
    tensor: Tensor | None, *, name: str, total: int, longest: int | None = None, used: list[int] | None = None
) -> list[int] | None:
    """cu_seqlens as numbers, checked against the packed length and the bound that the caller gave (max_seqlen).

    The bound is one of what is used (seqused): xformers leaves room behind each sequence, and does not count it in.
    """
    values = _read(tensor)
    if values is None:
        return None
    rising = all(a <= b for a, b in pairwise(values))
    if not rising or values[0] != 0 or values[-1] > total:
        raise CallError(f"{name} must rise from 0 to at most {total} (the packed length), found {values}")
    length = max((b - a for a, b in pairwise(values)) if used is None else used, default=0)
    if longest is not None and length > longest:
        bound, source = (name.replace("cu_seqlens", word) for word in ("max_seqlen", "seqused"))
        source = name if used is None else source
        raise CallError(
            f"{bound} is {longest}, but the longest sequence of {source} has {length}: it is an upper bound"
        )
    return values


def _bounded(values: list[int] | None, *, name: str, limit: int, what: str, skipped: list[bool]) -> None:
    for index, value in enumerate(values or ()):
        if not skipped[index] and not 0 <= value <= limit:
            raise CallError(f"{name}[{index}] is {value}, but {what} is {limit}")


def sequences(args: ForwardArgs | BackwardArgs, info: Facts) -> tuple[Sequence, ...]:
    """Read every length on the host and check it. Reading waits for the device: not for the CUDA decode path.

    A negative seqused_k (cache_seqlens) marks a row of padding, as upstream has it: no key, nothing appended.
    """
    cache = args if isinstance(args, ForwardArgs) else None
    count = info.batch
    total_q, total_k, max_q, max_k = args.q.shape[0], args.k.shape[0], args.max_seqlen_q, args.max_seqlen_k
    used_q, used_k = _read(args.seqused_q), _read(args.seqused_k)
    cu_q = _read_offsets(args.cu_seqlens_q, name="cu_seqlens_q", total=total_q, longest=max_q, used=used_q)
    cu_k = _read_offsets(args.cu_seqlens_k, name="cu_seqlens_k", total=total_k, longest=max_k, used=used_k)
    length_name = "seqused_k" if cu_k is not None else "cache_seqlens"
    left = _read(cache.leftpad_k) if cache else None
    rows = _read(cache.kv_batch_idx) if cache else None
    cu_new = None
    if cache and cache.k_new is not None and cache.cu_seqlens_k_new is not None:
        cu_new = _read_offsets(cache.cu_seqlens_k_new, name="cu_seqlens_k_new", total=cache.k_new.shape[0])
    padding = [used_k is not None and used_k[b] < 0 for b in range(count)]
    last = info.kv_rows - 1
    _bounded(rows, name="cache_batch_idx", limit=last, what="the last row of the cache", skipped=padding)
    result = []
    for b in range(count):
        q_start, q_room = (cu_q[b], cu_q[b + 1] - cu_q[b]) if cu_q else (0, info.rows)
        k_start, k_room = (cu_k[b], cu_k[b + 1] - cu_k[b]) if cu_k else (0, info.capacity)
        used_rows = used_q[b] if used_q else q_room
        held = used_k[b] if used_k else k_room
        new_start, new = (cu_new[b], cu_new[b + 1] - cu_new[b]) if cu_new else (0, info.new_rows)
        pad = left[b] if left else 0
        if padding[b]:
            held = new = pad = 0
        if not 0 <= used_rows <= q_room:
            raise CallError(f"seqused_q[{b}] is {used_rows}, but sequence {b} has room for {q_room} queries")
        if held + new > k_room:
            raise CallError(
                f"sequence {b}: cache_seqlens {held} + {new} new token(s) exceed the cache's capacity of {k_room}"
                if new
                else f"{length_name}[{b}] is {held}, but sequence {b} has room for {k_room} keys"
            )
        if pad < 0:
            raise CallError(f"cache_leftpad[{b}] is {pad}, expected 0 or more")
        result.append(
            Sequence(
                index=b,
                q_start=q_start,
                rows=used_rows,
                k_row=b if not rows else 0 if padding[b] else rows[b],
                k_start=k_start + pad,
                keys=max(held + new - pad, 0),
                new_start=new_start,
                new_rows=new,
                new_position=held,
            )
        )
    return tuple(result)
