"""Forward cases: every head dim, mask and awkward length, and what else the dense and packed functions take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ci.prove.gpu.probes.compare import Finding, GpuCase, Rule, attention, close, close_lse, random
from flash_attn3_sm121 import flash_attn_func, flash_attn_qkvpacked_func, flash_attn_varlen_func
from flash_attn3_sm121.selftest.reference import Mask

FULL, CAUSAL = Mask(), Mask(causal=True)
LOCAL, BOTH_SIDES = Mask(left=64, right=0), Mask(left=9, right=21)
MASKS = {"full": FULL, "causal": CAUSAL, "window (64, 0)": LOCAL, "window (9, 21)": BOTH_SIDES}
HEAD_DIMS = (16, 32, 64, 96, 128, 192, 256)
# (queries, keys): one query, tile edges and their neighbours, more queries than keys, several tiles each way.
LENGTHS = ((1, 239), (64, 128), (113, 203), (799, 3), (384, 256), (512, 513), (1023, 1024))
# Uneven packed lengths, with sequences of none and one.
PACKED = (5, 0, 64, 1, 333, 128)


@dataclass(frozen=True, kw_only=True)
class Dense:
    """The facts of one dense call."""

    dim: int
    rule: Rule
    lengths: tuple[int, int] = (113, 203)
    heads: tuple[int, int] = (4, 2)
    dim_v: int | None = None
    about: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def tensors(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        sq, sk = self.lengths
        q = random(device, dtype, 2, sq, self.heads[0], self.dim)
        k = random(device, dtype, 2, sk, self.heads[1], self.dim)
        return q, k, random(device, dtype, 2, sk, self.heads[1], self.dim_v or self.dim)

    @property
    def arguments(self) -> dict[str, Any]:
        mask = self.rule.mask
        return {
            "causal": mask.causal, "window_size": (mask.left, mask.right), "attention_chunk": mask.chunk,
            "softcap": self.rule.softcap, "softmax_scale": self.rule.scale, **self.options,
        }  # fmt: skip

    @property
    def name(self) -> str:
        mask = next((name for name, mask in MASKS.items() if mask == self.rule.mask), f"chunk {self.rule.mask.chunk}")
        cap = f", softcap {self.rule.softcap:g}" if self.rule.softcap else ""
        more = f", {self.about}" if self.about else ""
        return f"d {self.dim}, {mask}, {self.lengths[0]} x {self.lengths[1]}{cap}{more}"


def judged(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, rule: Rule) -> Iterator[Finding]:
    exact, exact_lse = attention(q.double(), k.double(), v.double(), rule)
    low, _ = attention(q, k, v, rule)
    yield close("out", out, exact, low, softcap=rule.softcap)
    yield close_lse(lse, exact_lse, softcap=rule.softcap)


def dense(facts: Dense) -> GpuCase:
    def findings(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
        q, k, v = facts.tensors(device, dtype)
        out, lse = flash_attn_func(q, k, v, **facts.arguments, return_attn_probs=True)
        yield from judged(q, k, v, out, lse, facts.rule)

    return GpuCase(name=f"forward: {facts.name}", findings=findings)


def _strided() -> GpuCase:
    """Heads before the sequence in memory, as many models keep them: views, not copies."""

    def findings(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
        q, k, v = (random(device, dtype, 2, 4, 130, 64).transpose(1, 2) for _ in range(3))
        out, lse = flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
        yield from judged(q, k, v, out, lse, Rule(mask=CAUSAL))

    return GpuCase(name="forward: transposed views", findings=findings)


def _qkvpacked(grouped: bool) -> GpuCase:
    def findings(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
        if grouped:
            qkv = random(device, dtype, 2, 97, 4 + 2 + 2, 64)
            q, k, v = torch.split(qkv, [4, 2, 2], dim=2)
        else:
            qkv = random(device, dtype, 2, 97, 3, 4, 64)
            q, k, v = qkv.unbind(dim=2)
        out, lse = flash_attn_qkvpacked_func(
            qkv, causal=True, num_heads_q=4 if grouped else None, return_attn_probs=True
        )
        yield from judged(q, k, v, out, lse, Rule(mask=CAUSAL))

    return GpuCase(name=f"forward: qkv packed in one tensor{', grouped' if grouped else ''}", findings=findings)


def offsets(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor((0, *lengths)).cumsum(0).to(torch.int32).to(device)


def _varlen(dim: int, mask_name: str, *, used: bool) -> GpuCase:
    """`used`: fewer queries and keys are valid than the packed tensors have room for."""

    def findings(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
        rule, cu, total = Rule(mask=MASKS[mask_name]), offsets(PACKED, device), sum(PACKED)
        q = random(device, dtype, total, 4, dim)
        k, v = (random(device, dtype, total, 2, dim) for _ in range(2))
        counts = [max(0, length - 3) if used else length for length in PACKED]
        valid = torch.tensor(counts, dtype=torch.int32, device=device) if used else None
        largest, mask = max(PACKED), rule.mask
        out, lse = flash_attn_varlen_func(
            q, k, v, cu, cu, largest, largest, seqused_q=valid, seqused_k=valid,
            causal=mask.causal, window_size=(mask.left, mask.right), return_attn_probs=True,
        )  # fmt: skip
        for row, (start, count) in enumerate(zip(cu.tolist()[:-1], counts, strict=True)):
            part = slice(start, start + count)
            for finding in judged(
                q[part][None], k[part][None], v[part][None], out[part][None], lse[:, part][None], rule
            ):
                yield Finding(what=f"{finding.what} {row}", error=finding.error, allowed=finding.allowed)

    with_used = ", seqused" if used else ""
    return GpuCase(name=f"forward: packed, d {dim}, {mask_name}, one empty{with_used}", findings=findings)


def cases() -> tuple[GpuCase, ...]:
    cases = [
        dense(Dense(dim=dim, rule=Rule(mask=mask), lengths=lengths))
        for lengths in LENGTHS
        for mask in MASKS.values()
        for dim in HEAD_DIMS
    ]
    cases += [dense(Dense(dim=dim, rule=Rule(mask=mask, softcap=15.0))) for dim in HEAD_DIMS for mask in (FULL, CAUSAL)]
    cases += [dense(Dense(dim=dim, rule=Rule(mask=Mask(causal=True, chunk=32)))) for dim in (64, 128)]
    cases += [
        dense(Dense(dim=dim, rule=Rule(mask=CAUSAL), heads=heads, about=f"heads {heads[0]}/{heads[1]}, pack_gqa {pack}",
                    options={"pack_gqa": pack}))
        for dim in (64, 128) for heads in ((6, 1), (6, 2), (4, 4)) for pack in (None, True, False)
    ]  # fmt: skip
    cases += [
        dense(Dense(dim=dim, rule=Rule(mask=mask), lengths=(17, 1500), about=f"num_splits {splits}",
                    options={"num_splits": splits}))
        for dim in HEAD_DIMS for mask in (FULL, CAUSAL) for splits in (0, 2, 5)
    ]  # fmt: skip
    cases += [dense(Dense(dim=dim, rule=Rule(mask=CAUSAL, scale=0.31), about="scale 0.31")) for dim in (64, 128)]
    cases += [dense(Dense(dim=d, dim_v=v, rule=Rule(mask=CAUSAL), about=f"dv {v}")) for d, v in ((192, 128), (64, 256))]
    cases += [dense(Dense(dim=dim, rule=Rule(mask=CAUSAL), about="multiple of 8 only")) for dim in (40, 72, 120)]
    cases += [_strided(), _qkvpacked(False), _qkvpacked(True)]
    cases += [_varlen(dim, name, used=used) for dim in HEAD_DIMS for name in MASKS for used in (False, True)]
    return tuple(cases)
