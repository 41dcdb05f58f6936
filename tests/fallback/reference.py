"""A plain fp64 reference of FlashAttention-3's forward call, written from the formulas; differentiable by autograd.

One sequence and one head at a time, one mask entry at a time; it shares nothing with the engine but the argument
record. Slow on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flash_attn3_sm121.call.arguments import ForwardArgs

F64 = torch.float64
FP8 = torch.float8_e4m3fn


@dataclass(kw_only=True)
class Expected:
    out: Tensor  # fp64, laid out like q
    lse: Tensor  # fp64, laid out like the LSE
    k: Tensor  # the cache afterwards
    v: Tensor


def sees(i: int, j: int, sq: int, sk: int, *, left: int, right: int, chunk: int) -> bool:
    """Whether query i of sq sees key j of sk."""
    p = i + sk - sq
    if right >= 0 and j > p + right:
        return False
    if left >= 0 and j < p - left:
        return False
    if chunk > 0:
        first = (p // chunk) * chunk
        return first <= j < first + chunk
    return True


def rotate_one(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x (H, d) by one row of the table (rd / 2), pair by pair."""
    result = x.to(F64).clone()
    half = cos.numel()
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        c, s = cos[i].to(F64), sin[i].to(F64)
        result[:, a] = x[:, a].to(F64) * c - x[:, b].to(F64) * s
        result[:, b] = x[:, a].to(F64) * s + x[:, b].to(F64) * c
    return result


def _per_sequence(tensor: Tensor | None, b: int) -> int | None:
    return None if tensor is None else int(tensor[b])


def _descale(tensor: Tensor | None, source: Tensor, b: int, head: int) -> float:
    return float(tensor[b, head]) if tensor is not None and source.dtype == FP8 else 1.0


def expected(args: ForwardArgs) -> Expected:
    q, k, v = args.q, args.k.clone(), args.v.clone()
    batch = args.cu_seqlens_q.numel() - 1 if args.cu_seqlens_q is not None else q.shape[0]
    heads, kv_heads = q.shape[-2], k.shape[-2]
    packed = args.cu_seqlens_q is not None
    right = 0 if args.causal else args.window_right
    band = {"left": args.window_left, "right": right, "chunk": args.attention_chunk}
    out = torch.zeros((*q.shape[:-1], v.shape[-1]), dtype=F64)
    lse = torch.full((heads, q.shape[0]) if packed else (batch, heads, q.shape[1]), -torch.inf, dtype=F64)
    for b in range(batch):
        rows = list(range(int(args.cu_seqlens_q[b]), int(args.cu_seqlens_q[b + 1]))) if packed else range(q.shape[1])
        used = _per_sequence(args.seqused_q, b)
        rows = list(rows)[: used if used is not None else None]
        sq = len(rows)
        places = _append_and_list(args, k, v, b)
        sk = len(places)
        for row_index, row in enumerate(rows):
            query = (q[row] if packed else q[b, row]).to(F64)
            if args.rotary_cos is not None:
                query = _rotated_query(args, query, b, row_index, sq, sk)
            query_v = None if args.qv is None else (args.qv[row] if packed else args.qv[b, row]).to(F64)
            seen = [j for j in range(sk) if sees(row_index, j, sq, sk, **band)]
            keys = torch.stack([k[places[j]] for j in seen]).to(F64) if seen else None
            values = torch.stack([v[places[j]] for j in seen]).to(F64) if seen else None
            for h in range(heads):
                o, e = _one(args, b, h, h // (heads // kv_heads), query, query_v, keys, values)
                if packed:
                    out[row, h], lse[h, row] = o, e
                else:
                    out[b, row, h], lse[b, h, row] = o, e
    if k[..., 0, 0].numel() == 0 and args.s_aux is None:
        lse = torch.full_like(lse, torch.inf)
    return Expected(out=out, lse=lse, k=k, v=v)


def _rotated_query(args: ForwardArgs, query: Tensor, b: int, row: int, sq: int, sk: int) -> Tensor:
    base = int(args.seqlens_rotary[b]) if args.seqlens_rotary is not None else int(args.seqused_k[b])
    capacity = args.page_table.shape[1] * args.k.shape[1] if args.page_table is not None else args.k.shape[1]
    longest = args.q.shape[1] if args.cu_seqlens_q is None else args.max_seqlen_q
    local = args.causal or 0 <= args.window_left < capacity - 1 or 0 <= args.window_right < longest - 1
    local = local or args.attention_chunk > 0
    at = base + row if local else base
    turned = rotate_one(query, args.rotary_cos[at], args.rotary_sin[at], args.rotary_interleaved)
    return turned.to(args.q.dtype).to(F64)


def _one(
    args: ForwardArgs,
    b: int,
    h: int,
    kv: int,
    query: Tensor,
    query_v: Tensor | None,
    keys: Tensor | None,
    values: Tensor,
) -> tuple[Tensor, Tensor]:
    """One row of one head: (out, lse)."""
    logits = torch.zeros(0, dtype=F64)
    if keys is not None:
        scale_q = _descale(args.q_descale, args.q, b, kv)
        scale_k, scale_v = _descale(args.k_descale, args.k, b, kv), _descale(args.v_descale, args.v, b, kv)
        logits = (keys[:, kv] * scale_k) @ (query[h] * scale_q)
        values = values[:, kv] * scale_v
        if query_v is not None:
            logits = logits + values @ (query_v[h] * scale_q)
        logits = logits * args.softmax_scale
        if args.softcap > 0:
            logits = args.softcap * torch.tanh(logits / args.softcap)
    width = args.v.shape[-1]
    if args.s_aux is None:
        if keys is None:
            return torch.zeros(width, dtype=F64), torch.tensor(-torch.inf, dtype=F64)
        return torch.softmax(logits, 0) @ values, torch.logsumexp(logits, 0)
    joined = torch.cat([logits, args.s_aux[h : h + 1].to(F64)])
    weights = torch.softmax(joined, 0)[:-1]
    return (weights @ values if keys is not None else torch.zeros(width, dtype=F64)), torch.logsumexp(joined, 0)


def _append_and_list(args: ForwardArgs, k: Tensor, v: Tensor, b: int) -> list[tuple[int, ...]]:
    """Write the sequence's new tokens into the copies of the cache, then index every key that it has."""
    row = int(args.kv_batch_idx[b]) if args.kv_batch_idx is not None else b
    if args.cu_seqlens_k is not None:
        start, stop = int(args.cu_seqlens_k[b]), int(args.cu_seqlens_k[b + 1])
    else:
        stop = args.page_table.shape[1] * k.shape[1] if args.page_table is not None else k.shape[1]
        start = 0
    if args.seqused_k is not None:
        stop = start + int(args.seqused_k[b])

    def place(position: int) -> tuple[int, ...]:
        if args.cu_seqlens_k is not None:
            return (position,)
        if args.page_table is None:
            return (row, position)
        size = k.shape[1]
        return (int(args.page_table[row, position // size]), position % size)

    if args.k_new is not None:
        if args.cu_seqlens_k_new is not None:
            tokens = [(t,) for t in range(int(args.cu_seqlens_k_new[b]), int(args.cu_seqlens_k_new[b + 1]))]
        else:
            tokens = [(b, t) for t in range(args.k_new.shape[1])]
        base = int(args.seqlens_rotary[b]) if args.seqlens_rotary is not None else stop
        for i, token in enumerate(tokens):
            new_k = args.k_new[token]
            if args.rotary_cos is not None:
                cos, sin = args.rotary_cos[base + i], args.rotary_sin[base + i]
                new_k = rotate_one(new_k, cos, sin, args.rotary_interleaved)
            where = place(stop + i)
            k[where], v[where] = new_k.to(k.dtype), args.v_new[token].to(v.dtype)
        stop += len(tokens)
    pad = int(args.leftpad_k[b]) if args.leftpad_k is not None else 0
    return [place(position) for position in range(start + pad, stop)]
