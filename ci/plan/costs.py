"""What a unit costs to compile: CPU seconds and peak memory, from measurements on CUDA 13.0 (docs/results/build.json).

Good for an ETA, and for how many compilers fit into memory at once; nothing in a library depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ci.plan.units import Unit
from flash_attn3_sm121.arch import Family


@dataclass(frozen=True, kw_only=True)
class Cost:
    """CPU seconds and gigabytes of the largest process."""

    cpu_s: float
    rss_gb: float


# The front ends alone, for a file that includes the attention templates; with all WGMMA shapes they read far more.
FRONT_END_CPU_S = 8.0
HOPPER_FRONT_END_CPU_S = 50.0
# Code generation a kernel and image.
KERNEL_CPU_S = {"fwd": 6.0, "bwd": 4.2}
# Memory of the largest process (cicc): a start, and what each kernel of the file adds (backward: the head dim).
FORWARD_RSS_GB = (2.9, 0.2)
BACKWARD_RSS_GB = (5.5, 1 / 92)
HOPPER_FACTOR = 1.3
FIXED = {
    "combine": (Cost(cpu_s=32, rss_gb=2.8), 42.0),
    "prepare": (Cost(cpu_s=32, rss_gb=1.4), 8.0),
    "api": (Cost(cpu_s=5, rss_gb=0.4), 0.0),
}


def estimate(unit: Unit, *, family: Family, images: int) -> Cost:
    """The cost of one unit for `images` gencode pairs (nvcc compiles them one after another)."""
    if unit.kind in FIXED:
        base, per_image = FIXED[unit.kind]
        return Cost(cpu_s=round(base.cpu_s + per_image * images, 1), rss_gb=base.rss_gb)
    factor = HOPPER_FACTOR if family is Family.SM90 else 1.0
    cpu = (HOPPER_FRONT_END_CPU_S if factor > 1 else FRONT_END_CPU_S) + factor * KERNEL_CPU_S[
        unit.kind
    ] * unit.kernels * images
    start, slope = FORWARD_RSS_GB if unit.kind == "fwd" else BACKWARD_RSS_GB
    rss = factor * (start + slope * (unit.kernels if unit.kind == "fwd" else unit.head_dim))
    return Cost(cpu_s=round(cpu, 1), rss_gb=round(rss, 1))


def total(costs: tuple[Cost, ...]) -> Cost:
    """CPU seconds add up; memory is that of the hungriest."""
    return Cost(
        cpu_s=round(sum(cost.cpu_s for cost in costs), 1), rss_gb=max((cost.rss_gb for cost in costs), default=0)
    )
