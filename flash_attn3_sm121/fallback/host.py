"""The forward and backward pass where lengths may be read on the host: every sequence gets just the work it needs."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.errors import CallError
from flash_attn3_sm121.fallback import append, attend, decode, gather, kernels, pieces, rotary, sinks
from flash_attn3_sm121.fallback.blocked import Scoring, accumulator
from flash_attn3_sm121.fallback.gather import Group
from flash_attn3_sm121.fallback.geometry import Geometry
from flash_attn3_sm121.fallback.problem import FP8, Facts, Sequence, facts, sequences
from flash_attn3_sm121.fallback.selfcheck import Kernel


def _check_pages(args: ForwardArgs, info: Facts, found: tuple[Sequence, ...]) -> None:
    """Every page that will be written, or read, exists; pages that the window hides may be gone."""
    if args.page_table is None:
        return
    table = args.page_table.tolist()
    for sequence in found:
        pages, total, size = table[sequence.k_row], args.k.shape[0], info.page_size
        geometry = Geometry.bottom_right(rows=sequence.rows, keys=sequence.keys, band=info.band)
        low, high = geometry.visible()
        read = (sequence.k_start + low, sequence.k_start + high)
        written = (sequence.new_position, sequence.new_position + sequence.new_rows)
        for begin, end in (read, written):
            if end > begin:
                gather.check_pages(pages, sequence, begin=begin, end=end, size=size, total=total)


def _check_rotary(args: ForwardArgs, info: Facts, found: tuple[Sequence, ...]) -> None:
    """Every used row stands inside the rotary table."""
    if args.rotary_cos is None:
        return
    base = append.rotary_base(args).tolist()
    for sequence in found:
        if sequence.keys == 0 and sequence.new_rows == 0:
            continue  # sees nothing and writes nothing
        rows = sequence.rows if info.band.is_local else min(sequence.rows, 1)
        needed = base[sequence.index] + max(rows, sequence.new_rows)
        if max(rows, sequence.new_rows) > 0 and not 0 <= base[sequence.index] <= needed <= args.rotary_cos.shape[0]:
            raise CallError(
                f"rotary_cos and rotary_sin hold {args.rotary_cos.shape[0]} positions, but sequence {sequence.index} "
                f"needs positions {base[sequence.index]} .. {needed - 1}"
            )


def rotated_queries(args: ForwardArgs, info: Facts) -> Tensor:
    """q, or q rotated: at the new tokens' positions when the mask is local, else all rows at the first."""
    if args.rotary_cos is None or args.rotary_sin is None or args.k_new is None or info.batch == 0:
        return args.q
    offsets = args.cu_seqlens_q.long() if args.cu_seqlens_q is not None else None
    rows = args.q.shape[0] if info.packed_q else args.q.shape[1]
    where = rotary.positions(append.rotary_base(args), offsets, rows, advance=info.band.is_local)
    dtype = args.q.dtype if args.q.dtype not in FP8 else torch.float32
    return rotary.rotate(
        args.q, args.rotary_cos, args.rotary_sin, where, interleaved=args.rotary_interleaved, dtype=dtype
    )


def scaled_queries(q: Tensor, args: ForwardArgs, info: Facts) -> Tensor:
    """Q of the whole batch, multiplied by the scale of its sequence and kv head."""
    if args.q_descale is None:
        return q
    scale = args.q_descale.to(q.dtype).repeat_interleave(info.group, dim=-1)
    if args.cu_seqlens_q is None:
        return q * scale[:, None, :, None]
    owner, _ = rotary.token_places(args.cu_seqlens_q.long(), q.shape[0])
    return q * scale[owner][..., None]


def _queries(args: ForwardArgs, tensor: Tensor, group: Group, info: Facts) -> Tensor:
    view = gather.queries(tensor, group, packed=info.packed_q).to(info.compute_dtype)
    if args.q_descale is None or args.q.dtype not in FP8:
        return view
    # Rotated fp8 queries are already fp32: the scale is applied here all the same, rotation is linear.
    scale = args.q_descale[group.batch_slice].to(view.dtype).repeat_interleave(info.group, dim=-1)
    return view * scale[:, None, :, None]


def _keys(
    args: ForwardArgs, cache: Tensor, descale: Tensor | None, group: Group, info: Facts, span: tuple[int, int]
) -> Tensor:
    if args.page_table is not None:
        pages = args.page_table[group.first.k_row]
        view = gather.paged_keys(cache, pages, group.first, *span)
    else:
        view = gather.dense_keys(cache, group, *span, packed=info.packed_k)
    return gather.dequantised(view, descale, group.batch_slice, heads=info.kv_heads, dtype=info.compute_dtype)


def forward(args: ForwardArgs) -> tuple[Tensor, Tensor]:
    """(out, lse); every argument is checked before the cache is written."""
    info = facts(args)
    found = sequences(args, info)
    _check_pages(args, info, found)
    _check_rotary(args, info, found)
    new = append.prepare(args, info)
    q = rotated_queries(args, info)
    if new is not None:
        append.write(args, new)
    scoring = Scoring(scale=args.softmax_scale, softcap=args.softcap)
    target = Target(args, info)
    if args.q.numel() == 0:
        return target.result()
    kernel = kernels.pick(args.q, args.k, args.v, args.qv, scoring) if args.q.device.type == "cpu" else None
    if kernel is not None and decode.serves(found, info):
        _decode(args, q, info, found, kernel, target)
        return target.result()
    for group in gather.groups(found, info):
        if group.first.rows == 0 or group.count == 0:
            continue
        geometry = Geometry.bottom_right(rows=group.first.rows, keys=group.first.keys, band=info.band)
        low, high, inner = geometry.narrowed()
        queries = _queries(args, q, group, info)
        qv = _queries(args, args.qv, group, info) if args.qv is not None else None
        keys = _keys(args, args.k, args.k_descale, group, info, (low, high))
        values = _keys(args, args.v, args.v_descale, group, info, (low, high))
        out, lse = attend.forward(queries, keys, values, qv, inner, scoring)
        if args.s_aux is not None:
            out, lse = sinks.include(out, lse, args.s_aux)
        target.put(group, out, lse)
    return target.result()


def _visible(args: ForwardArgs, group: Group, info: Facts, span: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The keys and values in `span` of each sequence of a group, both as wide as the queries."""
    keys = _keys(args, args.k, args.k_descale, group, info, span)
    values = _keys(args, args.v, args.v_descale, group, info, span)
    return attend.padded(keys, info.dim), attend.padded(values, info.dim)


def _decode(
    args: ForwardArgs, q: Tensor, info: Facts, found: tuple[Sequence, ...], kernel: Kernel, target: Target
) -> None:
    """All sequences at once, from views of what each of them sees."""
    everyone = Group(first=found[0], count=len(found))
    spans = []
    for group in gather.groups(found, info):
        geometry = Geometry.bottom_right(rows=group.first.rows, keys=group.first.keys, band=info.band)
        seen = geometry.low(0), geometry.high(0)
        if seen[1] > seen[0]:
            load = functools.partial(_visible, args, group, info, seen)
            length = seen[1] - seen[0]
            spans.append(decode.Span(first=group.first.index, count=group.count, length=length, load=load))
    if not info.paged and args.k.dtype == info.compute_dtype and info.dim == info.dim_v:
        spans = decode.paired(spans)  # these are views, not copies
    queries = attend.padded(_queries(args, q, everyone, info), info.dim)
    joined = decode.joins(queries, args.k, args.v, info)
    out, lse = decode.forward(queries, spans, kernel, scale=args.softmax_scale, kv_heads=info.kv_heads, joined=joined)
    out = out[..., : info.dim_v]
    if args.s_aux is not None:
        out, lse = sinks.include(out.contiguous(), lse, args.s_aux)
    target.put(everyone, out, lse)


class Target:
    """Where results of groups are put together; a group that covers the whole call is handed out as it is."""

    def __init__(self, args: ForwardArgs, info: Facts) -> None:
        self.args, self.info = args, info
        self.whole: tuple[Tensor, Tensor] | None = None
        self._parts: tuple[Tensor, Tensor] | None = None
        self.out_shape = (*args.q.shape[:-1], info.dim_v)
        rows = (args.q.shape[0],) if info.packed_q else (info.rows,)
        self.lse_shape = (info.heads, *rows) if info.packed_q else (info.batch, info.heads, *rows)

    def parts(self) -> tuple[Tensor, Tensor]:
        if self._parts is None:
            device = self.args.q.device
            self._parts = (
                torch.zeros(self.out_shape, dtype=self.info.out_dtype, device=device),
                torch.full(self.lse_shape, -torch.inf, dtype=torch.float32, device=device),
            )
        return self._parts

    def put(self, group: Group, out: Tensor, lse: Tensor) -> None:
        """Take the result of a group: out (count, rows, H, dv) and lse (count, H, rows)."""
        if not self.info.packed_q and tuple(out.shape) == self.out_shape:
            self.whole = (out.to(self.info.out_dtype).contiguous(), lse.to(torch.float32).contiguous())
            return
        whole_out, whole_lse = self.parts()
        gather.queries(whole_out, group, packed=self.info.packed_q).copy_(out)
        gather.lse_rows(whole_lse, group, packed=self.info.packed_q).copy_(lse)

    def result(self) -> tuple[Tensor, Tensor]:
        if self.whole is not None:
            out, lse = self.whole
        else:
            out, lse = self.parts()
        if self.info.empty_k and self.args.s_aux is None:
            lse = torch.full_like(lse, torch.inf)
        if self.args.out is not None:
            self.args.out.copy_(out)
            return self.args.out, lse
        return out, lse


class Sums:
    """Where gradients of groups are put together; those of one that covers the whole call are handed out as is."""

    def __init__(self, args: BackwardArgs, info: Facts) -> None:
        self.info = info
        self.like = (args.q, args.k, args.v)
        self._found: list[Tensor | None] = [None, None, None]

    def _total(self, i: int) -> Tensor:
        total = self._found[i]
        if total is None:
            like = self.like[i]
            total = self._found[i] = torch.zeros(like.shape, dtype=like.dtype, device=like.device)
        return total

    def put(self, group: Group, span: tuple[int, int], parts: tuple[Tensor, Tensor, Tensor]) -> None:
        """Take a group's (dq, dk, dv), the latter two for the keys in `span` of each sequence."""
        for i, part in enumerate(parts):
            like = self.like[i]
            if part.numel() == like.numel():
                self._found[i] = part.reshape(like.shape).to(like.dtype).contiguous()
            elif i == 0:
                gather.queries(self._total(i), group, packed=self.info.packed_q).copy_(part)
            else:
                gather.dense_keys(self._total(i), group, *span, packed=self.info.packed_k).copy_(part)

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._total(0), self._total(1), self._total(2)


def backward(args: BackwardArgs) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(dq, dk, dv, ds_aux); rows and keys without a part in the result get zeros."""
    info = facts(args)
    kind = accumulator(info.compute_dtype)
    sums = Sums(args, info)
    ds_aux = torch.zeros(info.heads, dtype=kind, device=args.q.device) if args.s_aux is not None else None
    scoring = Scoring(scale=args.softmax_scale, softcap=args.softcap)
    for group in gather.groups(sequences(args, info), info):
        if group.first.rows == 0 or group.count == 0 or args.q.numel() == 0:
            continue
        geometry = Geometry.bottom_right(rows=group.first.rows, keys=group.first.keys, band=info.band)
        dout, q, out = (
            gather.queries(tensor, group, packed=info.packed_q).to(info.compute_dtype)
            for tensor in (args.dout, args.q, args.out)
        )
        lse = gather.lse_rows(args.softmax_lse, group, packed=info.packed_q)
        delta = attend.row_delta(dout, out) if args.dlse is not None or args.s_aux is not None else None
        if delta is not None and args.dlse is not None:
            delta = delta - gather.lse_rows(args.dlse, group, packed=info.packed_q)
        if ds_aux is not None and delta is not None and args.s_aux is not None:
            ds_aux += sinks.gradient(lse.to(kind), delta, args.s_aux)
        low, high, inner = geometry.narrowed()
        if high <= low:
            continue
        k, v = (
            gather.dense_keys(tensor, group, low, high, packed=info.packed_k).to(info.compute_dtype)
            for tensor in (args.k, args.v)
        )
        rows = pieces.Rows(dout=dout, q=q, out=out, lse=lse)
        delta = delta if args.dlse is not None else None
        parts = attend.backward(rows, k, v, delta, inner, scoring, ordered=args.deterministic)
        if delta is None:
            attend.clear_zeros(out, v, inner, parts[0], parts[1])
        sums.put(group, (low, high), parts)
    dq, dk, dv = sums.result()
    return dq, dk, dv, None if ds_aux is None or args.s_aux is None else ds_aux.to(args.s_aux.dtype)
