"""What a case is."""

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
