"""The forward pass without reading a length: on CUDA, where waiting for the device costs more than work.

Shapes decide every loop; lengths stay tensors and only steer masks and indices, so the call neither synchronises nor
changes its launches from step to step (a CUDA graph can capture it). torch's FlashAttention computes where it may
(`flash.py`). Elsewhere the arithmetic is plain: with a window, each block of rows gathers just the keys that it may
see; without one it walks over the whole capacity. Values behind a sequence's end are zeroed, so that whatever stands
there (NaN too) can't leak.

There, packed queries are spread to (batch, max_seqlen_q): give max_seqlen_q, or every sequence counts as the whole.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from flash_attn3_sm121.call.arguments import ForwardArgs
from flash_attn3_sm121.fallback import append, blocked, flash, masks, rotary, sinks
from flash_attn3_sm121.fallback import geometry as cuts
from flash_attn3_sm121.fallback.blocked import Online, Scoring
from flash_attn3_sm121.fallback.host import rotated_queries
from flash_attn3_sm121.fallback.keys import Lengths, first_key, gathered, lengths_of, span_of, spread
from flash_attn3_sm121.fallback.problem import FP8, Facts, facts


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


def _converted(args: ForwardArgs, tensor: Tensor, dtype: torch.dtype, info: Facts) -> Tensor:
    """Queries (..., H, d) in a type, fp8 with its scale."""
    if args.q_descale is None or args.q.dtype not in FP8:
        return tensor.to(dtype)
    scale = args.q_descale.repeat_interleave(info.group, dim=-1)[:, None]
    if args.cu_seqlens_q is not None:
        owner, _ = rotary.token_places(args.cu_seqlens_q, tensor.shape[0])
        scale = scale[owner, 0]
    return (tensor.to(torch.float32) * scale.unsqueeze(-1)).to(dtype)


def _attend(
    args: ForwardArgs, q: Tensor, qv: Tensor | None, info: Facts, lengths: Lengths, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """q (batch, rows, H, d) to out (batch, rows, H, dv) and lse (batch, H, rows), both in the sum's type."""
    if info.rows == 1:  # it stands at the last key: nothing is hidden behind it
        info = replace(info, band=replace(info.band, right=-1))
    kind = blocked.accumulator(q.dtype)
    out = q.new_empty((info.batch, info.rows, info.heads, info.dim_v), dtype=kind)
    lse = q.new_empty((info.batch, info.heads, info.rows), dtype=kind)
    for row in range(0, info.rows, cuts.BLOCK_ROWS):
        count = min(cuts.BLOCK_ROWS, info.rows - row)
        rows, span = slice(row, row + count), span_of(info, row, count)
        positions = lengths.positions(row, count)
        first = first_key(info, positions[:, 0]) if span < info.capacity else None
        folded = blocked.fold(q[:, rows].to(kind), info.kv_heads)
        folded_v = blocked.fold(qv[:, rows].to(kind), info.kv_heads) if qv is not None else None
        online = Online(folded, info.dim_v)
        step = blocked.key_step(info.batch, info.heads, count)
        for key in range(0, span, step):
            numbers = torch.arange(key, min(key + step, span), device=q.device).expand(info.batch, -1)
            if first is not None:
                numbers = numbers + first[:, None]
            unused = (numbers >= lengths.keys[:, None])[:, :, None, None]
            copies = gathered(args, info, lengths, numbers, slice(None))
            k, v = (copy.to(kind).masked_fill(unused, 0).transpose(1, 2) for copy in copies)
            scores = scoring.apply(blocked.products(folded, folded_v, k, v))
            seen = masks.visible(positions[:, :, None], numbers[:, None], lengths.keys[:, None, None], info.band)
            online.add(blocked.hide(scores, seen, count), v)
        block_out, block_lse = online.result()
        out[:, rows] = blocked.unfold(block_out, count)
        lse[:, :, rows] = block_lse.reshape(info.batch, info.heads, count)
    return out, lse


def _finish(args: ForwardArgs, info: Facts, lengths: Lengths, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Rows behind a sequence's used end become 0 and -inf; packed rows that were spread go back to their places."""
    rows = lengths.rows
    if isinstance(rows, int):
        return out, lse
    if args.cu_seqlens_q is None:
        used = torch.arange(info.rows, device=out.device) < rows[:, None]
        return out.masked_fill_(~used[:, :, None, None], 0.0), lse.masked_fill_(~used[:, None], -torch.inf)
    owner, index = rotary.token_places(args.cu_seqlens_q, args.q.shape[0])
    unused = (index >= rows[owner]) | (index >= info.rows)
    if out.dim() == 4:
        index = index.clamp(0, max(info.rows - 1, 0))
        out, lse = out[owner, index], lse[owner, :, index].transpose(0, 1)
    return out.masked_fill_(unused[:, None, None], 0.0), lse.masked_fill_(unused, -torch.inf)


def _result(args: ForwardArgs, q: Tensor, info: Facts, kernel: flash.Kernel | None) -> tuple[Tensor, Tensor]:
    """out and lse of a call with queries and keys."""
    if kernel is not None and flash.is_dense(args, info):
        out, lse = flash.dense(kernel, args, _converted(args, q, info.out_dtype, info), info)
        return sinks.include(out, lse, args.s_aux) if args.s_aux is not None else (out, lse)
    lengths = lengths_of(args, info)
    if kernel is not None:
        out, lse = flash.attend(kernel, args, _converted(args, q, info.out_dtype, info), info, lengths)
    else:
        queries = spread(args, _converted(args, q, info.compute_dtype, info), info)
        qv = spread(args, _converted(args, args.qv, info.compute_dtype, info), info) if args.qv is not None else None
        scoring = Scoring(scale=args.softmax_scale, softcap=args.softcap)
        out, lse = _attend(args, queries, qv, info, lengths, scoring)
    if args.s_aux is not None:
        rows, lses = (out, lse) if out.dim() == 4 else (out.unsqueeze(0), lse.unsqueeze(0))
        _, total = sinks.include(rows, lses, args.s_aux)
        lse = total.view(lse.shape)
    return _finish(args, info, lengths, out, lse)


def forward(args: ForwardArgs, *, check: bool = True, kernel: flash.Kernel | None = None) -> tuple[Tensor, Tensor]:
    """(out, lse). Values are trusted, except that a write is preceded by an assertion on the device (`check`).

    Args:
        kernel: torch's FlashAttention, where it serves the call (`flash.pick`); None: plain arithmetic.
    """
    info = facts(args)
    if check:
        _check(args, info)
    new = append.prepare(args, info)
    q = rotated_queries(args, info)
    if new is not None:
        append.write(args, new)
    if info.batch == 0 or info.rows == 0 or args.q.numel() == 0:
        out = args.q.new_zeros((*args.q.shape[:-1], info.dim_v), dtype=info.out_dtype)
        rows = (info.heads, args.q.shape[0]) if info.packed_q else (info.batch, info.heads, info.rows)
        lse = torch.full(rows, -torch.inf, dtype=torch.float32, device=args.q.device)
    else:
        out, lse = _result(args, q, info, kernel)
        out, lse = out.to(info.out_dtype), lse.to(torch.float32)
    if info.empty_k and args.s_aux is None:
        lse = torch.full_like(lse, torch.inf)
    if args.out is not None:
        args.out.copy_(out)
        return args.out, lse.contiguous()
    return out.contiguous(), lse.contiguous()
