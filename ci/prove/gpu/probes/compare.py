"""How far a result may be from the plain formula: the rule upstream's own tests use, and one for the LSE, which they
do not look at.

The low-precision formula is computed too, step by step in the tensors' own dtype; a kernel may be twice as far from
the exact result as that (thrice with softcap), plus what rounding alone moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flash_attn3_sm121.selftest.reference import Mask

TANH = 2.0**-10  # the kernels' tanh is the hardware's approximation


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One compared tensor. `error` and `allowed` are absolute; for bitwise checks they count elements."""

    what: str
    error: float
    allowed: float

    @property
    def good(self) -> bool:
        return self.error <= self.allowed < float("inf")  # a NaN is not, nor is anything where all is allowed

    @property
    def share(self) -> float:
        if self.error == 0:
            return 0.0
        return self.error / self.allowed if self.allowed > 0 else float("inf")


@dataclass(frozen=True, kw_only=True)
class GpuCase:
    """A named check. `findings(device, dtype)` may raise BackendError: a backend that was asked for refuses."""

    name: str
    findings: Callable[[torch.device, torch.dtype], Iterator[Finding]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The arguments of the formula beside the tensors."""

    mask: Mask
    softcap: float = 0.0
    scale: float | None = None


def attention(q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """(b, s, h, d) tensors, every step in their dtype -> out, lse (b, h, s). Rows without keys are 0."""
    group = q.shape[2] // k.shape[2]
    wide_k, wide_v = (x.repeat_interleave(group, dim=2) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if rule.scale is None else rule.scale
    scores = torch.einsum("bqhd,bkhd->bhqk", q, wide_k * scale)
    if rule.softcap > 0:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    keep = rule.mask.keep(q.shape[1], k.shape[1]).to(q.device)
    scores = scores.masked_fill(~keep, float("-inf"))
    lse = torch.logsumexp(scores.detach().to(torch.promote_types(scores.dtype, torch.float32)), dim=-1)
    empty = ~keep.any(dim=-1)[:, None]
    weights = torch.softmax(scores.masked_fill(empty, 0.0), dim=-1).masked_fill(empty, 0.0)
    return torch.einsum("bhqk,bkhd->bqhd", weights, wide_v), lse


def gap(got: Tensor, wanted: Tensor) -> float:
    """The largest difference; infinite where shapes differ, or infinities do not stand in the same places."""
    if got.shape != wanted.shape:
        return float("inf")
    if got.numel() == 0:
        return 0.0
    have, want = got.detach().double(), wanted.detach().double().to(got.device)
    finite = torch.isfinite(want)
    if not bool(((have == want) | finite).all()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    return float((have - want)[finite].abs().nan_to_num(nan=float("inf")).max())


def close(what: str, got: Tensor, exact: Tensor, low: Tensor, *, softcap: float = 0.0, extra: float = 0.0) -> Finding:
    """Compare by the rule of upstream's tests."""
    rounded = exact.detach().to(low.dtype)
    rounding = gap(rounded + 0.3 - 0.3, rounded)
    # torch's own CPU kernel, which the fallback calls, rounds gradients between blocks of queries.
    factor = 3.0 if softcap > 0 or got.device.type == "cpu" else 2.0
    allowed = factor * gap(low, exact) + 2.0 * rounding + extra + 1e-5
    return Finding(what=what, error=gap(got, exact), allowed=allowed)


def close_lse(got: Tensor, exact: Tensor, *, softcap: float = 0.0) -> Finding:
    """fp32 sums of products of exact inputs: what is left is exp2 and log, and tanh where it is used."""
    finite = exact[torch.isfinite(exact)]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return Finding(what="lse", error=gap(got, exact), allowed=1e-3 + 1e-4 * largest + TANH * softcap)


def same_bits(what: str, got: Tensor, wanted: Tensor) -> Finding:
    """How many elements differ in any bit; none may."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return Finding(what=what, error=float("inf"), allowed=0.0)
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[got.element_size()]
    mine, theirs = (x.detach().contiguous().view(kind) for x in (got, wanted))
    return Finding(what=what, error=float((mine != theirs.to(mine.device)).sum()), allowed=0.0)


def random(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    """Drawn on the CPU: the same numbers on every machine."""
    return torch.randn(*shape).to(dtype).to(device)
