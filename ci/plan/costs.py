"""The cost of compiling a unit, CPU seconds and peak memory, and how many compilers run at once. Pure.

Estimates come from the table `costs.json`, which `python -m ci measure --refit` computes from what units have cost in
builds of this machine. They give an ETA, and nothing in a library depends on them. Ninja counts jobs, not gigabytes.
So the hungry units are put into a pool of their own, whose depth keeps any choice of running units within the
machine's memory: two backward units need 14 GB where two of the small ones need 3.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import linear_regression

from ci.plan.units import Unit
from flash_attn3_sm121.arch import CAPABILITIES, Family

FILE = Path(__file__).with_name("costs.json")
HOPPER_IMAGE = CAPABILITIES["9.0"].target


@dataclass(frozen=True, kw_only=True)
class Cost:
    """CPU seconds and gigabytes of the largest process."""

    cpu_s: float
    rss_gb: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """A unit as far as its cost depends on it: its name, what it is compiled for, and how many kernels it has."""

    unit: str
    images: frozenset[str]
    kernels: int  # of one image

    @property
    def kind(self) -> str:
        """The row of the table: the first word of the unit's name, apart for Hopper, whose headers are larger."""
        return self.unit.partition("_")[0] + ("_sm90" if HOPPER_IMAGE in self.images else "")


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A row of the table: what a file of one kind costs, and what each of its kernels adds.

    nvcc compiles for one image after another: seconds add up over them, memory does not.
    """

    start_s: float
    kernel_s: float
    start_gb: float
    kernel_gb: float
    measured: int  # units that it was computed from; 0: none has been compiled on the machine that wrote the table

    def cost(self, kernels: int, *, images: int = 1) -> Cost:
        return Cost(
            cpu_s=round(self.start_s + self.kernel_s * kernels * images, 1),
            rss_gb=round(self.start_gb + self.kernel_gb * kernels, 1),
        )


@functools.cache
def table() -> Mapping[str, Rate]:
    """The table of this repository, by kind."""
    return {kind: Rate(**row) for kind, row in json.loads(FILE.read_text(encoding="utf-8")).items()}


def to_json(rates: Mapping[str, Rate]) -> str:
    rows = [f" {json.dumps(kind)}: {json.dumps(asdict(rate))}" for kind, rate in rates.items()]
    return "{\n" + ",\n".join(rows) + "\n}\n"


def work_of(unit: Unit, *, images: Sequence[str]) -> Work:
    return Work(unit=unit.name, images=frozenset(images), kernels=unit.kernels)


def estimate(unit: Unit, *, family: Family, images: int) -> Cost:
    """The cost of one unit for `images` gencode pairs."""
    kind = f"{unit.kind}_sm90" if family is Family.SM90 and unit.is_cuda else unit.kind
    return table()[kind].cost(unit.kernels, images=images)


def refit(rates: Mapping[str, Rate], measured: Mapping[Work, Cost]) -> dict[str, Rate]:
    """The table that measured units come to. A kind without any keeps its row, marked as not measured.

    Args:
        rates: the table so far.
        measured: what units have cost; those of no known kind are passed over.
    """
    return {
        kind: _refitted(rate, {work: cost for work, cost in measured.items() if work.kind == kind})
        for kind, rate in rates.items()
    }


def _refitted(rate: Rate, costs: Mapping[Work, Cost]) -> Rate:
    """The sum of CPU seconds becomes the measured one; of memory, no unit has taken more than it says.

    One or two units say little about the memory that the others take: they can only raise it.
    """
    if not costs:
        return replace(rate, measured=0)
    compiled = [work.kernels * len(work.images) for work in costs]
    seconds = [cost.cpu_s for cost in costs.values()]
    if max(compiled) >= 2 * min(compiled):
        slope, start = linear_regression(compiled, seconds)
    else:  # files of about one size do not tell the start from the rest
        factor = sum(seconds) / sum(rate.start_s + rate.kernel_s * count for count in compiled)
        slope, start = factor * rate.kernel_s, factor * rate.start_s
    most = max(cost.rss_gb / (rate.start_gb + rate.kernel_gb * work.kernels) for work, cost in costs.items())
    most = most if len(costs) > 2 else max(most, 1.0)
    return Rate(
        start_s=round(max(start, 0.0), 2),
        kernel_s=round(slope, 3),
        start_gb=round(most * rate.start_gb, 3),
        kernel_gb=round(most * rate.kernel_gb, 4),
        measured=len(costs),
    )


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
