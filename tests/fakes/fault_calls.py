"""The calls that show the mended faults, and how far their results are from the formula in fp64.

Each case takes `call(op, **arguments)`, which runs an op on CPU tensors, and returns figures by name: a largest
distance, or a count of elements that changed and should not have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Op = Callable[..., Any]
DIM, HEADS, GROUPS = 64, 4, 2
UNUSED = 7.0  # what memory holds that no kernel may write

# Distances to the formula in fp64 of results that are right: bf16 in and out, sums in fp32.
NEAR = {
    "out": 8e-3,
    "lse": 1e-5,
    "cache": 0.0,
    "behind the head": 0.0,
    "dq": 2.3e-2,
    "dk": 2.3e-2,
    "dv": 2.3e-2,
    "ds_aux": 2.3e-2,
}


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape).bfloat16()


def _ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """One sequence by the formula, in fp64: q (rows, heads, d); k, v (keys, groups, d). (out, LSE by head and row)."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v), scores.logsumexp(-1)


def _furthest(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """The largest distance; what is no number is infinitely far."""
    return max(float((a.double() - b.double()).abs().nan_to_num(math.inf).max()) for a, b in pairs)


def _append(
    call: Op, *, dim: int, rows: int, cos: Tensor | None = None, sin: Tensor | None = None, **more: Any
) -> dict[str, float]:
    """New keys at the end of a cache whose rows have room behind the head; keys split in three."""
    held, capacity, batch = (130, 97), 256, 2
    wide = [torch.full((batch, capacity, GROUPS, DIM), UNUSED).bfloat16() for _ in range(2)]
    caches = [x[..., :dim] for x in wide]
    for cache in caches:
        for b, count in enumerate(held):
            cache[b, :count] = _random(count, GROUPS, dim)
    q, k_new, v_new = _random(batch, rows, HEADS, dim), *(_random(batch, rows, GROUPS, dim) for _ in range(2))
    expected = [x.clone() for x in wide]
    turn = _turned(cos, sin)
    for b, count in enumerate(held):
        expected[0][b, count : count + rows, :, :dim] = turn(k_new[b], count, fixed=False)
        expected[1][b, count : count + rows, :, :dim] = v_new[b]
    used = more.pop("used", None)
    lengths: dict[str, Any] = {"seqused_q": _ints(*used)} if used else {}
    if not used:
        lengths = {"cu_seqlens_q": _ints(0, rows, 2 * rows), "max_seqlen_q": rows}
    out, lse, *_ = call(
        "fwd", q=q if used else q.flatten(0, 1), k=caches[0], v=caches[1], k_new=k_new, v_new=v_new,
        seqused_k=_ints(*held), num_splits=3, **({} if cos is None else {"rotary_cos": cos, "rotary_sin": sin}),
        **lengths, **more,
    )  # fmt: skip
    if not used:
        out, lse = out.view(q.shape), lse.view(HEADS, batch, rows).transpose(0, 1)
    used = used or (rows, rows)
    outs, lses = [], []
    for b, count in enumerate(held):
        keys = [x[b, : count + rows, :, :dim] for x in expected]
        right, right_lse = attention(turn(q[b], count, fixed=True), *keys)
        outs.append((out[b, : used[b]], right[: used[b]]))
        lses.append((lse[b, :, : used[b]], right_lse[:, : used[b]]))
    behind = [int((x[..., dim:] != UNUSED).sum()) for x in wide]
    return {
        "out": _furthest(outs),
        "lse": _furthest(lses),
        "cache": _furthest([(x[..., :dim], y[..., :dim]) for x, y in zip(wide, expected, strict=True)]),
        "behind the head": float(sum(behind)),
    }


def _turned(cos: Tensor | None, sin: Tensor | None) -> Callable[..., Tensor]:
    """Rotary, not interleaved, as upstream has it: in fp32, rounded once. `fixed`: every row at the first place."""

    def turn(x: Tensor, first: int, *, fixed: bool) -> Tensor:
        if cos is None or sin is None:
            return x
        half = cos.shape[1]
        rows = torch.full((x.shape[0],), first) if fixed else torch.arange(first, first + x.shape[0])
        c, s = (t[rows][:, None].float() for t in (cos, sin))
        left, right, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :]
        return torch.cat(((left * c - right * s).to(x.dtype), (left * s + right * c).to(x.dtype), rest), dim=-1)

    return turn


def _skipped(out: Tensor, lse: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What a row of padding has: zeros, and an LSE of -inf, which counts as 0 here, and as 1 where it is not."""
    return (out, torch.zeros_like(out)), ((~lse.isneginf()).float(), torch.zeros_like(lse))


def padded_rows(call: Op) -> dict[str, float]:
    """A batch of decoding, padded as the package hands it on: kernels see no keys, write none and read no page."""
    figures: list[dict[str, float]] = []
    for new, padding in ((1, -1), (5, -5)):
        held = (130, padding, 97, padding)
        caches = [torch.full((4, 256, GROUPS, DIM), UNUSED).bfloat16() for _ in range(2)]
        q, k_new, v_new = _random(4, new, HEADS, DIM), *(_random(4, new, GROUPS, DIM) for _ in range(2))
        for cache in caches:
            for b in (0, 2):
                cache[b, : held[b]] = _random(held[b], GROUPS, DIM)
        expected = [x.clone() for x in caches]
        for b in (0, 2):
            for cache, tokens in zip(expected, (k_new, v_new), strict=True):
                cache[b, held[b] : held[b] + new] = tokens[b]
        cu = _ints(*range(0, 4 * new + 1, new))
        out, lse, *_ = call(
            "fwd", q=q.flatten(0, 1), k=caches[0], v=caches[1], k_new=k_new, v_new=v_new, seqused_k=_ints(*held),
            num_splits=3, cu_seqlens_q=cu, max_seqlen_q=new,
        )  # fmt: skip
        out, lse = out.view(q.shape), lse.view(HEADS, 4, new).transpose(0, 1)
        figures.append(_of_rows(out, lse, q, held, new, *expected))
        figures[-1]["cache"] = _furthest(list(zip(caches, expected, strict=True)))
    held, page = (201, -1, 17), 16
    order = torch.randperm(3 * page).int().view(3, page)
    k, v = (_random(3 * page, page, GROUPS, DIM) for _ in range(2))
    whole = [x[order.long()].flatten(1, 2) for x in (k, v)]
    order[1] = -1
    q = _random(3, 1, HEADS, DIM)
    out, lse, *_ = call(
        "fwd", q=q, k=k, v=v, page_table=order, num_splits=3, seqused_k=_ints(*held), seqused_q=_ints(1, 1, 1)
    )
    figures.append(_of_rows(out, lse, q, held, 0, *whole))
    return {name: max(found.get(name, 0.0) for found in figures) for name in ("out", "lse", "cache")}


def _of_rows(
    out: Tensor, lse: Tensor, q: Tensor, held: tuple[int, ...], new: int, keys: Tensor, values: Tensor
) -> dict[str, float]:
    outs, lses = [], []
    for b, count in enumerate(held):
        right, right_lse = attention(q[b], keys[b, : count + new], values[b, : count + new])
        pairs = _skipped(out[b], lse[b]) if count < 0 else ((out[b], right), (lse[b], right_lse))
        outs.append(pairs[0])
        lses.append(pairs[1])
    return {"out": _furthest(outs), "lse": _furthest(lses)}


def append_and_split(call: Op) -> dict[str, float]:
    """Several tiles a block, where few SMs are posed as: each but the first begins under the output of the last."""
    return _append(call, dim=DIM, rows=70)


def rotary_below_the_kernel(call: Op) -> dict[str, float]:
    """Head dim 48 in a kernel of 64, all of it turned."""
    angles = torch.rand(256, 24) * 6
    return _append(
        call, dim=48, rows=5, cos=angles.cos().bfloat16(), sin=angles.sin().bfloat16(), is_rotary_interleaved=False
    )


def used_rows_and_split(call: Op) -> dict[str, float]:
    """seqused_q without cu_seqlens_q: the second batch's results are its own."""
    used = (3, 9)
    return _append(call, dim=DIM, rows=9, used=used)


def decode_from_pages(call: Op) -> dict[str, float]:
    """One row a sequence, keys in pages of 16, split in three."""
    held, page, pages = (201, 96, 17), 16, 16
    order = torch.randperm(len(held) * pages).int().view(len(held), pages)
    k, v = (_random(len(held) * pages, page, GROUPS, DIM) for _ in range(2))
    q = _random(len(held), 1, HEADS, DIM)
    used = {"seqused_k": _ints(*held), "seqused_q": _ints(1, 1, 1)}
    out, lse, *_ = call("fwd", q=q, k=k, v=v, page_table=order, num_splits=3, **used)
    outs, lses = [], []
    for b, count in enumerate(held):
        right, right_lse = attention(q[b], *(x[order[b].long()].flatten(0, 1)[:count] for x in (k, v)))
        outs.append((out[b], right))
        lses.append((lse[b], right_lse))
    return {"out": _furthest(outs), "lse": _furthest(lses)}


def shared_keys(call: Op) -> dict[str, float]:
    """2^31 keys by their shape: a tensor expanded over the batch, of which a window sees two."""
    batch, rows, keys = 2048, 2, 2**20
    q, (k, v) = _random(batch, rows, 1, DIM), (_random(1, keys, 1, DIM) for _ in range(2))
    out, lse, *_ = call(
        "fwd", q=q, k=k.expand(batch, -1, -1, -1), v=v.expand(batch, -1, -1, -1), window_size_left=0,
        window_size_right=0, num_splits=1,
    )  # fmt: skip
    own = (q.double() * k[0, -rows:].double()).sum(-1) / math.sqrt(DIM)
    return {"out": _furthest([(out, v[:, -rows:].expand_as(out))]), "lse": _furthest([(lse, own.transpose(1, 2))])}


def _gradients(call: Op, lengths: list[tuple[int, int]], *, packed: bool, **more: Any) -> dict[str, float]:
    """Gradients of `lengths` (rows, keys) of each batch's 100 and 150; rows of Q are packed or not."""
    rows, keys, heads = 100, 150, HEADS
    q, dout = (_random(len(lengths), rows, heads, DIM) for _ in range(2))
    k, v = (_random(len(lengths), keys, heads, DIM) for _ in range(2))
    out, lse = torch.zeros_like(q), torch.full((len(lengths), heads, rows), -math.inf)
    right = [torch.zeros(x.shape, dtype=torch.float64) for x in (q, k, v)]
    for b, (used_q, used_k) in enumerate(lengths):
        leaves = [x[b, :n].double().requires_grad_() for x, n in ((q, used_q), (k, used_k), (v, used_k))]
        result, mine = attention(*leaves)
        out[b, :used_q], lse[b, :, :used_q] = result.detach().bfloat16(), mine.detach().float()
        for whole, part in zip(right, torch.autograd.grad(result, leaves, dout[b, :used_q].double()), strict=True):
            whole[b, : part.shape[0]] = part
    given = {"q": q, "dout": dout, "out": out, "dq": torch.zeros_like(q)}
    if packed:
        given = {name: x.flatten(0, 1) for name, x in given.items()}
        lse = lse.transpose(0, 1).flatten(1).contiguous()
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    call("bwd", **given, k=k, v=v, softmax_lse=lse, dk=dk, dv=dv, **more)
    dq = given["dq"].view(q.shape)
    return {name: _furthest([(a, b)]) for name, a, b in zip(("dq", "dk", "dv"), (dq, dk, dv), right, strict=True)}


def used_rows_backward(call: Op) -> dict[str, float]:
    """seqused_q and seqused_k without cu_seqlens; rows past them are nobody's."""
    lengths = [(100, 37), (64, 150), (1, 129)]
    used = {"seqused_q": _ints(*(n for n, _ in lengths)), "seqused_k": _ints(*(n for _, n in lengths))}
    return _gradients(call, lengths, packed=False, **used)


def packed_rows_backward(call: Op) -> dict[str, float]:
    """cu_seqlens_q, and K as it is."""
    return _gradients(call, [(100, 150)] * 3, packed=True, cu_seqlens_q=_ints(0, 100, 200, 300), max_seqlen_q=100)


CASES: dict[str, Callable[[Op], dict[str, float]]] = {
    case.__name__: case
    for case in (
        append_and_split,
        rotary_below_the_kernel,
        used_rows_and_split,
        decode_from_pages,
        padded_rows,
        shared_keys,
        used_rows_backward,
        packed_rows_backward,
    )
}


def show(gpu: Any, case: str, ways: list[dict[str, Any]]) -> dict[str, float]:
    """Run one case once with each of the settings; the figures that are furthest from right ones."""
    return furthest(gpu, CASES[case], ways)


def furthest(gpu: Any, case: Callable[[Op], dict[str, float]], ways: list[dict[str, Any]]) -> dict[str, float]:
    """The largest of each figure of a case over several settings."""
    figures: dict[str, float] = {}
    for settings in ways:
        for name, value in settings.items():
            setattr(gpu.settings, name, value)
        torch.manual_seed(0)
        figures |= {name: max(value, figures.get(name, 0.0)) for name, value in case(gpu.call).items()}
    return figures
