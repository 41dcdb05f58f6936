"""A case, and attention by its formula, one sequence at a time, in fp64 on the CPU. The formula is slow and shares no
code with what is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Case:
    """`results(device, dtype)` yields (what, got, wanted) triples; `wanted` is fp64 on the CPU."""

    name: str
    results: Callable[[torch.device, torch.dtype], Iterator[tuple[str, Tensor, Tensor]]]


def random(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    import torch

    return torch.randn(*shape).to(dtype).to(device)


@dataclass(frozen=True, kw_only=True)
class Mask:
    """What a query may look at, by the absolute positions of FlashAttention-3 (aligned at the bottom right)."""

    causal: bool = False
    left: int = -1
    right: int = -1
    chunk: int = 0

    def keep(self, queries: int, keys: int) -> Tensor:
        import torch

        position = torch.arange(queries)[:, None] + keys - queries
        key = torch.arange(keys)[None, :]
        kept = torch.ones(queries, keys, dtype=torch.bool)
        right = 0 if self.causal else self.right
        if right >= 0:
            kept &= key <= position + right
        if self.left >= 0:
            kept &= key >= position - self.left
        if self.chunk > 0:
            start = torch.div(position, self.chunk, rounding_mode="floor") * self.chunk
            kept &= (key >= start) & (key < start + self.chunk)
        return kept


def sequence(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, *, softcap: float = 0.0, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """(queries, heads, d) against (keys, kv heads, d) -> (out, lse (heads, queries)); a row without keys: 0, -inf."""
    import torch

    group = q.shape[1] // k.shape[1]
    wide_k, wide_v = (x.double().repeat_interleave(group, dim=1) for x in (k, v))
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.einsum("qhd,khd->hqk", q.double(), wide_k) * factor
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask.keep(q.shape[0], k.shape[0]), float("-inf"))
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.masked_fill(lse == float("-inf"), 0.0)[..., None])
    return torch.einsum("hqk,khd->qhd", weights, wide_v), lse


def batch(q: Tensor, k: Tensor, v: Tensor, mask: Mask, *, softcap: float = 0.0) -> tuple[Tensor, Tensor]:
    """(b, s, h, d) tensors; out and lse (b, h, s)."""
    import torch

    rows = [sequence(a, b, c, mask, softcap=softcap) for a, b, c in zip(q, k, v, strict=True)]
    return torch.stack([out for out, _ in rows]), torch.stack([lse for _, lse in rows])


def rotate(x: Tensor, cos: Tensor, sin: Tensor, first: int, *, interleaved: bool) -> Tensor:
    """Rotary embedding of (s, h, d) from position `first` on, over the leading 2 * cos.shape[-1] dimensions."""
    import torch

    half = cos.shape[-1]
    c, s = (table[first : first + x.shape[0], None, :].double() for table in (cos, sin))
    head, tail = x[..., : 2 * half].double(), x[..., 2 * half :].double()
    one, two = (head[..., ::2], head[..., 1::2]) if interleaved else (head[..., :half], head[..., half:])
    left, right = one * c - two * s, one * s + two * c
    turned = torch.stack((left, right), dim=-1).flatten(-2) if interleaved else torch.cat((left, right), dim=-1)
    return torch.cat((turned, tail), dim=-1)
