"""Forward calls of every mode, combine by itself, and the scheduler's metadata, against the formula."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ci.prove.gb10.cases import Case
from ci.prove.gb10.check import ROUNDS, TYPES, Judge, Maker, common, ints, scores, starts, untouched
from ci.prove.gb10.child import Gpu
from ci.prove.gb10.reference import WINDOWS, turned


def forward(gpu: Gpu, case: Case, judge: Judge) -> list[Tensor]:
    """One forward call: outputs, LSE, and the caches that it wrote."""
    maker = Maker(case)
    if case.mode == "packed":
        return _packed(gpu, case, judge, maker)
    if case.mode in ("dense", "used"):
        return _dense(gpu, case, judge, maker)
    return _cached(gpu, case, judge, maker)


def _compare(
    judge: Judge, case: Case, out: Tensor, lse: Tensor, numbers: list[Tensor], qv: Tensor | None = None
) -> None:
    """A sequence's results against the formula. `qv`: the rows of a second query."""
    q, k, v = numbers
    if qv is not None:
        q, k = torch.cat((q, qv.double()), -1), torch.cat((k, v), -1)
    right, right_lse = scores(case).attention(q, k, v)
    judge.near("lse", lse, right_lse, kind="lse")

    def rounded_weights() -> Tensor:
        """Each weight and the output rounded, all in the same direction."""
        return ROUNDS[case.dtype] * (scores(case).attention(q, k, v.abs())[0] + right.abs())

    if not case.fp8:
        judge.near("out", out, right, kind="out", room=rounded_weights)
        return
    # A weight is off by half of its last bit, a sixteenth at most, or, where it is tiny, by half of the smallest one.
    spread, _ = scores(case).attention(q, k, v.abs())
    room = spread / 16 + 2.0**-18 * v.abs().sum() / v.shape[1] + 2.0**-8 * right.abs() + 1e-9
    judge.rounded(out, right, room=room, same=scores(case).attention(q, k, v, fp8=True)[0])


def _dense(gpu: Gpu, case: Case, judge: Judge, maker: Maker) -> list[Tensor]:
    """Batches of one length, or of which only a part is used; what is behind that part is NaN."""
    heads, groups = case.heads
    q = maker.normal(case.batch, case.rows, heads, case.dim)
    k, v = (maker.keys(case.batch, case.keys, groups, dim) for dim in (case.dim, case.values))
    rows, keys = [case.rows] * case.batch, [case.keys] * case.batch
    given: dict[str, Any] = {}
    if case.mode == "used":
        rows, keys = maker.pairs()
        keys = keys[::-1] if case.batch > 2 else keys
        given = {"seqused_q": ints(rows), "seqused_k": ints(keys)}
    for b in range(case.batch):
        q[b, rows[b] :], k[b, keys[b] :], v[b, keys[b] :] = math.nan, math.nan, math.nan
        maker.spike(q[b, : rows[b]], k[b, : keys[b]])
    qv = maker.second(q)
    given |= maker.scales | {"q_v": qv}
    out, lse, *_ = gpu.call(
        "fwd", q=maker.queries(q), k=maker.stored(k), v=maker.stored(v), num_splits=case.splits, **given, **common(case)
    )
    for b in range(case.batch):
        mine, theirs = slice(rows[b]), slice(keys[b])
        numbers = maker.numbers(b, q[b, mine], k[b, theirs], v[b, theirs])
        _compare(judge, case, out[b, mine], lse[b, :, mine], numbers, None if qv is None else qv[b, mine])
        for x in (out[b, rows[b] :], lse[b, :, rows[b] :]):
            judge.same("behind", x, untouched(x))
    return [out, lse]


def _packed(gpu: Gpu, case: Case, judge: Judge, maker: Maker) -> list[Tensor]:
    heads, groups = case.heads
    rows, keys = maker.pairs()
    q = maker.normal(sum(rows), heads, case.dim)
    k, v = (maker.keys(sum(keys), groups, dim) for dim in (case.dim, case.values))
    at_q, at_k = starts(rows), starts(keys)
    for b in range(case.batch):
        maker.spike(q[at_q[b] : at_q[b + 1]], k[at_k[b] : at_k[b + 1]])
    qv = maker.second(q)
    out, lse, *_ = gpu.call(
        "fwd", q=maker.queries(q), k=maker.stored(k), v=maker.stored(v), q_v=qv, cu_seqlens_q=at_q, cu_seqlens_k=at_k,
        max_seqlen_q=max(rows), max_seqlen_k=max(keys), num_splits=case.splits, **maker.scales, **common(case),
    )  # fmt: skip
    for b in range(case.batch):
        mine, theirs = slice(int(at_q[b]), int(at_q[b + 1])), slice(int(at_k[b]), int(at_k[b + 1]))
        numbers = maker.numbers(b, q[mine], k[theirs], v[theirs])
        _compare(judge, case, out[mine], lse[:, mine], numbers, None if qv is None else qv[mine])
    return [out, lse]


class Cache:
    """K and V of a batch in rows or pages, with NaN where no key is.

    Args:
        begins, ends: which places of a sequence's row hold keys.
    """

    def __init__(self, case: Case, maker: Maker, begins: list[int], ends: list[int], capacity: int) -> None:
        self.table: Tensor | None = None
        picked = case.cache == "picked"
        self.row = [case.batch - b if picked else b for b in range(case.batch)]  # one row is nobody's
        shape = (case.batch + picked, capacity)
        if "paged" in case.mode:
            pages = -(-capacity // case.page)
            count = shape[0] * pages + 1  # one page is nobody's
            order = torch.randperm(count, generator=maker.random)[: shape[0] * pages]
            self.table = order.view(shape[0], pages).int()
            shape = (count, case.page)
        self.k, self.v = (maker.keys(*shape, case.heads[1], dim) for dim in (case.dim, case.values))
        self.page = case.page
        used = torch.zeros(shape, dtype=torch.bool)
        for b, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            used[self.places(b, begin, end)] = True
        self.k[~used], self.v[~used] = math.nan, math.nan

    def places(self, b: int, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Indices of a sequence's keys in `k` and `v`."""
        at = torch.arange(begin, end)
        if self.table is None:
            return torch.full_like(at, self.row[b]), at
        return self.table[self.row[b]].long()[at // self.page], at % self.page


def _rotary(case: Case, maker: Maker, most: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines: for the whole head, or for the first half of it."""
    half = max(8, case.dim // (16 if case.keys % 2 else 32) * 16 // 2)
    angles = torch.rand(most, half, generator=maker.random) * 6
    return angles.cos().to(TYPES[case.dtype]), angles.sin().to(TYPES[case.dtype])


def _cached(gpu: Gpu, case: Case, judge: Judge, maker: Maker) -> list[Tensor]:
    """K and V from a cache; with new keys, which are turned and written to it first."""
    heads, groups = case.heads
    appends, whole = "append" in case.mode, case.mode == "paged whole"
    new = case.rows if appends else 0
    capacity = case.keys + new + 9
    held = maker.lengths(case.keys, none=True)
    if whole:
        capacity = -(-case.keys // case.page) * case.page
        held = [capacity] * case.batch
    pads = [min(count, 3 + 14 * b) if case.cache == "leftpad" else 0 for b, count in enumerate(held)]
    cache = Cache(case, maker, pads, held, capacity)
    q = maker.normal(case.batch, case.rows, heads, case.dim)
    given: dict[str, Any] = {} if whole else {"seqused_k": ints(held)}
    given |= maker.scales if cache.table is None else {"page_table": cache.table} | maker.scales
    given |= {"leftpad_k": ints(pads)} if case.cache == "leftpad" else {}
    given |= {"kv_batch_idx": ints(cache.row)} if case.cache == "picked" else {}
    right_k, right_v = cache.k.clone(), cache.v.clone()
    if appends:
        k_new, v_new = (maker.normal(case.batch, new, groups, dim) for dim in (case.dim, case.values))
        given |= {"k_new": k_new, "v_new": v_new}
    if case.rotary:
        cos, sin = _rotary(case, maker, capacity + max(case.rows, case.page))
        pairs = case.rotary == "pairs"
        given |= {"rotary_cos": cos, "rotary_sin": sin, "is_rotary_interleaved": pairs}
    for b, count in enumerate(held):
        if appends:
            rows, places = torch.arange(count, count + new), cache.places(b, count, count + new)
            right_k[places] = turned(k_new[b], cos, sin, rows, pairs=pairs) if case.rotary else k_new[b]
            right_v[places] = v_new[b]
        maker.spike(q[b], right_k[cache.places(b, pads[b], count + new)])
    qv = maker.second(q)
    given |= {"q_v": qv}
    given_q, turned_q = maker.queries(q), q.clone()
    for b, count in enumerate(held if case.rotary else []):
        fixed = case.mask == "full" or _no_window(case, capacity)
        rows = torch.full((case.rows,), count) + (0 if fixed else torch.arange(case.rows))
        turned_q[b] = turned(q[b], cos, sin, rows, pairs=pairs)
    before = cache.k.clone(), cache.v.clone()
    stored_k, stored_v = maker.stored(cache.k), maker.stored(cache.v)
    out, lse, *_ = gpu.call("fwd", q=given_q, k=stored_k, v=stored_v, num_splits=case.splits, **given, **common(case))
    for b, count in enumerate(held):
        places = cache.places(b, pads[b], count + new)
        numbers = maker.numbers(b, turned_q[b], right_k[places], right_v[places])
        _compare(judge, case, out[b], lse[b], numbers, None if qv is None else qv[b])
    for name, found, right, old in (("k cache", cache.k, right_k, before[0]), ("v cache", cache.v, right_v, before[1])):
        if appends and case.mask not in ("full", "causal"):
            # New keys that no row's window reaches are not written, by upstream's own rule.
            skipped = (found.view(torch.int16) == old.view(torch.int16)).all(-1).all(-1)
            right = torch.where(skipped[..., None, None], old, right)
        judge.same(name, found, right)
        behind = found._base[..., found.shape[-1] :] if found._base is not None else found[..., :0]
        judge.same("behind heads", behind, torch.full_like(behind, math.nan))
    return [out, lse, cache.k, cache.v]


def _no_window(case: Case, capacity: int) -> bool:
    """Whether a window is as wide as the keys and rows, which upstream takes for none."""
    left, right = WINDOWS.get(case.mask, (0, 0))
    return case.mask in WINDOWS and left >= capacity - 1 and right >= case.rows - 1


def combine(gpu: Gpu, case: Case, judge: Judge) -> list[Tensor]:
    """Partial outputs put together; splits without a key hold NaN and count nothing."""
    generator = torch.Generator().manual_seed(case.splits)
    shape = (case.splits, case.batch, case.rows, case.heads[0])
    parts = torch.randn(*shape, case.dim, generator=generator)
    lse = torch.randn(shape, generator=generator)
    lse[:, :, ::2] *= 60  # so far apart that only the right maximum keeps the exponentials finite
    empty = torch.rand(shape, generator=generator) < 0.2
    empty[:, 0, 0, 0] = True  # a row that no split has
    lse[empty], parts[empty] = -math.inf, math.nan
    _, batch, rows, heads = shape
    lse = torch.empty_strided(shape, (batch * rows * heads, rows * heads, 1, rows)).copy_(lse)
    out, whole = gpu.call("fwd_combine", out_partial=parts, lse_partial=lse, out_dtype=TYPES[case.dtype])
    right_lse = lse.double().logsumexp(0)
    weights = torch.where(empty, 0.0, (lse.double() - right_lse).exp()).nan_to_num(0.0)
    right = (weights[..., None] * parts.double().nan_to_num(0.0)).sum(0)
    judge.near("out", out, right, kind="out")
    judge.near("lse", whole, right_lse, kind="lse")
    return [out, whole]


def metadata(gpu: Gpu, case: Case, judge: Judge) -> list[Tensor]:
    """The scheduler's metadata, judged by what a forward call makes of it; a large batch only by being finished."""
    maker = Maker(case)
    held = maker.lengths(case.keys)
    heads, groups = case.heads
    made = gpu.call(
        "get_scheduler_metadata", batch_size=case.batch, max_seqlen_q=case.rows, max_seqlen_k=case.keys,
        num_heads=heads, num_heads_k=groups, headdim=case.dim, headdim_v=case.values, qkv_dtype=TYPES[case.dtype],
        seqused_k=ints(held), is_causal=case.mask == "causal", num_splits=case.splits,
    )  # fmt: skip
    if case.batch <= 40:
        q = maker.normal(case.batch, case.rows, heads, case.dim)
        k, v = (maker.normal(case.batch, case.keys, groups, dim) for dim in (case.dim, case.values))
        qv = maker.second(q)
        out, lse, *_ = gpu.call(
            "fwd", q=q, k=k, v=v, q_v=qv, seqused_k=ints(held), num_splits=case.splits, scheduler_metadata=made,
            **common(case),
        )  # fmt: skip
        for b, count in enumerate(held):
            numbers = maker.numbers(b, q[b], k[b, :count], v[b, :count])
            _compare(judge, case, out[b], lse[b], numbers, None if qv is None else qv[b])
        return [out, lse]
    return []
