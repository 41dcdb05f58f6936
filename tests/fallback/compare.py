"""How close a result has to be to the fp64 reference."""

from __future__ import annotations

import torch
from torch import Tensor

# Rounding of the result, and of the weights before their product with v; values here are of order one.
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 2e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}
LSE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-5, torch.float16: 1e-4, torch.bfloat16: 1e-4}


def assert_close(found: Tensor, want: Tensor, tolerance: float, what: str) -> None:
    """Equal shapes, equal infinities, no NaN, and differences below tolerance * (1 + |want|)."""
    assert found.shape == want.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(want.shape)}"
    found = found.to(torch.float64)
    assert not found.isnan().any(), f"{what}: NaN"
    infinite = want.isinf() | found.isinf()
    assert torch.equal(found[infinite], want[infinite]), f"{what}: infinities differ"
    difference = (found - want)[~infinite].abs() / (1 + want[~infinite].abs())
    worst = difference.max().item() if difference.numel() else 0.0
    assert worst <= tolerance, f"{what}: off by {worst:.3g}, allowed {tolerance:.3g}"
