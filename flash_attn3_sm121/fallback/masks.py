"""The band as a tensor: which (row, key) pairs of a block are visible."""

from __future__ import annotations

import torch
from torch import Tensor

from flash_attn3_sm121.fallback.geometry import Band, Geometry


def visible(positions: Tensor, keys: Tensor, count: Tensor | int, band: Band) -> Tensor:
    """`positions` (..., rows, 1) and `keys` (..., 1, n) to a boolean (..., rows, n); `count` keys exist."""
    seen = (keys >= 0) & (keys < count)
    if band.left >= 0:
        seen = seen & (keys >= positions - band.left)
    if band.right >= 0:
        seen = seen & (keys <= positions + band.right)
    if band.chunk > 0:
        seen = seen & (
            torch.div(keys, band.chunk, rounding_mode="floor")
            == torch.div(positions, band.chunk, rounding_mode="floor")
        )
    return seen


def block(geometry: Geometry, row: int, rows: int, key: int, keys: int, *, device: torch.device) -> Tensor:
    """The boolean mask of rows `[row, row + rows)` against keys `[key, key + keys)`."""
    positions = torch.arange(row, row + rows, device=device).unsqueeze(1) + geometry.shift
    columns = torch.arange(key, key + keys, device=device).unsqueeze(0)
    return visible(positions, columns, geometry.keys, geometry.band)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, -inf elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
