"""Small inputs for the interface's tests, and plain attention to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

import flash_attn3_sm121 as fa3


def dense(
    *, b: int = 2, sq: int = 5, sk: int = 7, h: int = 4, hk: int = 2, d: int = 16, grad: bool = False, **kind: object
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v."""
    shapes = ((b, sq, h, d), (b, sk, hk, d), (b, sk, hk, d))
    q, k, v = (torch.randn(shape, **kind).requires_grad_(grad) for shape in shapes)  # type: ignore[call-overload]
    return q, k, v


def packed(
    lengths: tuple[int, ...] = (3, 0, 7), *, h: int = 4, hk: int = 2, d: int = 16, grad: bool = False
) -> tuple[Tensor, ...]:
    """q, k, v and cu_seqlens; the sequences of q and k are the same."""
    total = sum(lengths)
    cu = torch.tensor([sum(lengths[:i]) for i in range(len(lengths) + 1)], dtype=torch.int32)
    q, k, v = (torch.randn(total, heads, d).requires_grad_(grad) for heads in (h, hk, hk))
    return q, k, v, cu


def plain(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, window: tuple[int, int] = (-1, -1)) -> Tensor:
    """Attention in fp64 with a full mask, as one would write it down."""
    sq, sk, group = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    k, v = (x.double().repeat_interleave(group, dim=2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q.double(), k) * q.shape[-1] ** -0.5
    p = torch.arange(sq)[:, None] + sk - sq
    j = torch.arange(sk)[None, :]
    keep = torch.ones(sq, sk, dtype=torch.bool)
    left, right = window[0], 0 if causal else window[1]
    if right >= 0:
        keep &= j <= p + right
    if left >= 0:
        keep &= j >= p - left
    weights = scores.masked_fill(~keep, float("-inf")).softmax(-1).nan_to_num(0.0)
    return torch.einsum("bhij,bjhd->bihd", weights, v)


__all__ = ["dense", "fa3", "packed", "plain"]
