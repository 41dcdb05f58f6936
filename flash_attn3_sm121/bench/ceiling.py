"""The run's ceiling: the rates of a large matmul and a large copy, measured in the same run as everything else."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flash_attn3_sm121.bench.case import DTYPES
from flash_attn3_sm121.bench.measure import Budget, clock_of, interleave


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """The best of the samples: a ceiling is the highest rate that was reached."""

    dtype: str
    tflops: float
    gbps: float

    def ideal_ms(self, flops: float, moved: int) -> float:
        """The least time this device could take, if the slower of the two limits were the only one."""
        return max(flops / (self.tflops * 1e12), moved / (self.gbps * 1e9)) * 1e3

    def bound(self, flops: float, moved: int) -> str:
        return "compute" if flops / (self.tflops * 1e12) >= moved / (self.gbps * 1e9) else "memory"


def measure_ceiling(device: torch.device, dtype: str, *, seconds: float = 2.0) -> Ceiling:
    side, length = (8192, 1 << 29) if device.type == "cuda" else (1536, 1 << 26)
    a, b = (torch.randn(side, side, device=device).to(DTYPES[dtype]) for _ in range(2))
    source = torch.zeros(length, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    samples = interleave(
        {"matmul": lambda: torch.mm(a, b), "copy": lambda: target.copy_(source)},
        Budget(seconds=seconds, least=5),
        clock_of(device),
    )
    return Ceiling(
        dtype=dtype,
        tflops=2 * side**3 / (min(samples["matmul"]) * 1e-3) / 1e12,
        gbps=2 * length / (min(samples["copy"]) * 1e-3) / 1e9,  # read and written
    )
