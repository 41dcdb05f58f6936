"""The cost of compiling a unit, CPU seconds and peak memory, and how many compilers run at once. Pure.

Costs are from measurements on CUDA 13.0 (docs/results/build.json). They give an ETA, and nothing in a library depends
on them. Ninja counts jobs, not gigabytes. So the hungry units are put into a pool of their own, whose depth keeps any
choice of running units within the machine's memory: two backward units need 14 GB where two of the small ones need 3.
"""

from __future__ import annotations

from collections.abc import Sequence
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


MEMORY_MARGIN_GB = 1.0  # left to everything else on the machine


@dataclass(frozen=True, kw_only=True)
class Concurrency:
    """How many compilers run at once: `jobs` in all, and of those that need more than `hungry_gb` at most `hungry`."""

    jobs: int
    hungry: int
    hungry_gb: float

    def is_hungry(self, cost: Cost) -> bool:
        return cost.rss_gb > self.hungry_gb

    def seconds(self, costs: Sequence[Cost]) -> float:
        """The least time that compiling takes.

        It is the largest of: all units over all jobs, the hungry units over theirs, and the longest unit.
        """
        hungry = sum(cost.cpu_s for cost in costs if self.is_hungry(cost))
        longest = max((cost.cpu_s for cost in costs), default=0.0)
        return max(sum(cost.cpu_s for cost in costs) / self.jobs, hungry / max(1, self.hungry), longest)


def concurrency(costs: Sequence[Cost], *, cores: int, memory_gb: float, wanted: int | None) -> Concurrency:
    """The fastest choice for these units that memory holds, whichever of them run together; at least one runs.

    Args:
        wanted: as many jobs as the user asks for (`JOBS=`), instead of one a core; memory limits them all the same.
    """
    room = memory_gb - MEMORY_MARGIN_GB
    needs = sorted({cost.rss_gb for cost in costs}, reverse=True)
    best = Concurrency(jobs=1, hungry=1, hungry_gb=max(needs, default=0.0))
    for light in needs:  # the largest need that does not count as hungry
        for jobs in range(2, (wanted or cores) + 1):
            hungry = jobs
            while hungry > 0 and hungry * needs[0] + (jobs - hungry) * light > room:
                hungry -= 1
            choice = Concurrency(jobs=jobs, hungry=hungry, hungry_gb=light)
            if hungry > 0 and choice.seconds(costs) < best.seconds(costs):
                best = choice
    return best
