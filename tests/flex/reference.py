"""Attention in fp64 with an explicit mask, written from the rules: what FlexAttention's answers are held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flash_attn3_sm121.call.arguments import ForwardArgs


@dataclass(frozen=True, kw_only=True)
class Rule:
    left: int = -1
    right: int = -1
    chunk: int = 0
    softcap: float = 0.0


def keep(rows: int, keys: int, rule: Rule) -> Tensor:
    """(rows, keys) bool, aligned to the bottom right corner."""
    p = torch.arange(rows)[:, None] + keys - rows
    j = torch.arange(keys)[None]
    kept = torch.ones(rows, keys, dtype=torch.bool)
    if rule.left >= 0:
        kept &= j >= p - rule.left
    if rule.right >= 0:
        kept &= j <= p + rule.right
    if rule.chunk:
        start = torch.div(p, rule.chunk, rounding_mode="floor") * rule.chunk
        kept &= (j >= start) & (j < start + rule.chunk)
    return kept


def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float, rule: Rule) -> tuple[Tensor, Tensor]:
    """One sequence: q (s, h, d) and k, v (t, hk, .) to (s, h, dv) and lse (h, s); differentiable."""
    group = q.size(1) // k.size(1)
    q, k, v = q.double(), k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    score = torch.einsum("shd,thd->hst", q, k) * scale
    if rule.softcap:
        score = rule.softcap * torch.tanh(score / rule.softcap)
    kept = keep(q.size(0), k.size(0), rule)
    alive = kept.any(-1)
    score = score.masked_fill(~kept, float("-inf"))
    lse = torch.where(alive, torch.logsumexp(torch.where(alive[:, None], score, 0.0), -1), float("-inf"))
    weight = torch.where(alive[:, None], score, 0.0).softmax(-1) * alive[:, None]
    return torch.einsum("hst,thd->shd", weight, v), lse


def attend_batch(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, rule: Rule, used_q: list[int], used_k: list[int]
) -> tuple[Tensor, Tensor]:
    """Dense (b, s, h, d) with used lengths; rows past them are 0 and -inf."""
    outs, lses = [], []
    for b, (nq, nk) in enumerate(zip(used_q, used_k, strict=True)):
        out, lse = attend(q[b, :nq], k[b, :nk], v[b, :nk], scale=scale, rule=rule)
        pad = q.size(1) - nq
        outs.append(torch.nn.functional.pad(out, (0, 0, 0, 0, 0, pad)))
        lses.append(torch.nn.functional.pad(lse, (0, pad), value=float("-inf")))
    return torch.stack(outs), torch.stack(lses)


def attend_packed(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, rule: Rule, cu_q: list[int], cu_k: list[int]
) -> tuple[Tensor, Tensor]:
    """Packed (total, h, d): out (total, h, dv), lse (h, total)."""
    outs, lses = [], []
    for i in range(len(cu_q) - 1):
        out, lse = attend(
            q[cu_q[i] : cu_q[i + 1]], k[cu_k[i] : cu_k[i + 1]], v[cu_k[i] : cu_k[i + 1]], scale=scale, rule=rule
        )
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses, dim=-1)


RULES = {
    "full": Rule(),
    "causal": Rule(right=0),
    "window": Rule(left=37, right=0),
    "two-sided": Rule(left=50, right=20),
    "right-only": Rule(right=13),
    "chunk": Rule(right=0, chunk=48),
    "chunk-two-sided": Rule(chunk=40),
    "softcap": Rule(right=0, softcap=5.0),
    "zero-window": Rule(left=0, right=0),
}


def args_of(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rule: Rule, **more: Any) -> ForwardArgs:
    return ForwardArgs(
        q=q,
        k=k,
        v=v,
        softmax_scale=0.2,
        causal=rule.right == 0 and rule.left < 0,
        window_left=rule.left,
        window_right=rule.right,
        attention_chunk=rule.chunk,
        softcap=rule.softcap,
        **more,
    )
