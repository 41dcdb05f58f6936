"""Decoding cases: plain and paged caches, ragged lengths, appended keys, rotary, splits; what was written as well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ci.prove.gpu.probes.compare import Finding, GpuCase, Rule, attention, close, close_lse, random, same_bits
from ci.prove.gpu.probes.forward import HEAD_DIMS, MASKS
from flash_attn3_sm121 import flash_attn_with_kvcache
from flash_attn3_sm121.selftest import reference

CAPACITY = 512
USED = (70, 0, 381)  # valid keys a row before the call


@dataclass(frozen=True, kw_only=True)
class Decode:
    """The facts of one call. `page` 0 is a plain cache, `new` 0 appends nothing."""

    dim: int
    queries: int = 1
    new: int = 0
    page: int = 0
    splits: int = 1
    mask: str = "causal"
    heads: tuple[int, int] = (6, 2)
    rotary: str = ""  # "", "interleaved" or "halves"
    moved: bool = False  # cache_batch_idx: the rows lie elsewhere in a larger cache

    @property
    def name(self) -> str:
        parts = [f"d {self.dim}", f"{self.queries} queries", self.mask, f"num_splits {self.splits}"]
        parts += [f"pages of {self.page}"] if self.page else []
        parts += [f"{self.new} appended"] if self.new else []
        parts += [f"rotary {self.rotary}"] if self.rotary else []
        parts += ["rows moved"] if self.moved else []
        return ", ".join((*parts, f"heads {self.heads[0]}/{self.heads[1]}"))


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A cache in memory and how to see it as (rows, capacity, heads, d) again."""

    stored: Tensor
    table: Tensor | None
    rows: Tensor | None

    def seen(self) -> Tensor:
        if self.table is not None:
            return self.stored[self.table.long()].flatten(1, 2)
        return self.stored if self.rows is None else self.stored[self.rows.long()]


def store(plain: Tensor, facts: Decode, table: Tensor | None, rows: Tensor | None) -> Cache:
    if table is not None:
        pages = torch.zeros(table.numel(), facts.page, *plain.shape[2:], dtype=plain.dtype, device=plain.device)
        pages[table.flatten().long()] = plain.reshape(-1, facts.page, *plain.shape[2:])
        return Cache(stored=pages, table=table, rows=None)
    if rows is not None:
        wide = torch.zeros(5, *plain.shape[1:], dtype=plain.dtype, device=plain.device)
        wide[rows.long()] = plain
        return Cache(stored=wide, table=None, rows=rows)
    return Cache(stored=plain.clone(), table=None, rows=None)


def _tables(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angles = torch.arange(CAPACITY)[:, None] * (10.0 ** -torch.linspace(0, 3, 16))[None, :]
    return angles.cos().to(dtype).to(device), angles.sin().to(dtype).to(device)


def _turn(x: Tensor, tables: tuple[Tensor, Tensor], first: int, style: str) -> Tensor:
    """Rotated in fp64 on the CPU and rounded once."""
    cos, sin = (table.cpu() for table in tables)
    turned = reference.rotate(x.cpu(), cos, sin, first, interleaved=style == "interleaved")
    return turned.to(x.dtype).to(x.device)


def decode(facts: Decode) -> GpuCase:
    def findings(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
        heads, kv = facts.heads
        q = random(device, dtype, len(USED), facts.queries, heads, facts.dim)
        k_plain, v_plain = (random(device, dtype, len(USED), CAPACITY, kv, facts.dim) for _ in range(2))
        new = [random(device, dtype, len(USED), facts.new, kv, facts.dim) for _ in range(2)] if facts.new else []
        table = None
        if facts.page:
            table = torch.randperm(len(USED) * CAPACITY // facts.page).reshape(len(USED), -1).to(torch.int32).to(device)
        rows = torch.tensor((4, 0, 2), dtype=torch.int32, device=device) if facts.moved else None
        keys, values = (store(x, facts, table, rows) for x in (k_plain, v_plain))
        tables, mask = _tables(device, dtype), MASKS[facts.mask]
        more: dict[str, Any] = {"k": new[0], "v": new[1]} if new else {}
        if facts.rotary:
            more |= {"rotary_cos": tables[0], "rotary_sin": tables[1]}
            more["rotary_interleaved"] = facts.rotary == "interleaved"
        out, lse, *_ = flash_attn_with_kvcache(
            q, keys.stored, values.stored, page_table=table, cache_batch_idx=rows, causal=mask.causal,
            cache_seqlens=torch.tensor(USED, dtype=torch.int32, device=device), num_splits=facts.splits,
            window_size=(mask.left, mask.right), return_softmax_lse=True, **more,
        )  # fmt: skip
        for row, used in enumerate(USED):
            query, parts = q[row], [x[row] for x in new]
            if facts.rotary:
                query, parts[0] = (_turn(x, tables, used, facts.rotary) for x in (query, parts[0]))
            for plain, part in zip((k_plain, v_plain), parts, strict=False):
                plain[row, used : used + facts.new] = part
            total = used + facts.new
            if total == 0:
                yield Finding(what=f"out {row}, no keys", error=float(out[row].abs().max()), allowed=0.0)
                continue
            rule = Rule(mask=mask)
            some = [x[row, :total][None] for x in (k_plain, v_plain)]
            exact, exact_lse = attention(query[None].double(), some[0].double(), some[1].double(), rule)
            low, _ = attention(query[None], some[0], some[1], rule)
            slack = 2e-2 * float(exact.abs().max()) if facts.rotary and dtype == torch.bfloat16 else 0.0
            yield close(f"out {row}", out[row][None], exact, low, extra=slack)
            if not facts.rotary:  # q is rounded after turning in the kernel, at its own place
                yield close_lse(lse[row][None], exact_lse)
        if facts.new and not facts.rotary:
            yield same_bits("keys in the cache", keys.seen(), k_plain)
        if facts.new:
            yield same_bits("values in the cache", values.seen(), v_plain)

    return GpuCase(name=f"cache: {facts.name}", findings=findings)


def cases() -> tuple[GpuCase, ...]:
    cases = [
        decode(Decode(dim=dim, queries=queries, new=new, page=page, splits=splits))
        for splits in (1, 0, 3)
        for page in (0, 64, 256)
        for queries, new in ((1, 0), (1, 1), (4, 4))
        for dim in HEAD_DIMS
    ]
    cases += [decode(Decode(dim=dim, queries=4, page=page)) for dim in (64, 128) for page in (16, 128)]
    cases += [
        decode(Decode(dim=dim, queries=3, mask=mask, splits=s)) for dim in (64, 128) for mask in MASKS for s in (1, 3)
    ]
    cases += [
        decode(Decode(dim=dim, queries=2, new=2, rotary=style, page=page))
        for dim in (64, 128)
        for style in ("interleaved", "halves")
        for page in (0, 64)
    ]
    cases += [decode(Decode(dim=128, heads=heads, splits=0)) for heads in ((8, 8), (8, 1), (12, 3))]
    cases += [decode(Decode(dim=128, moved=True, new=new)) for new in (0, 1)]
    return tuple(cases)
