"""What hosted runners are asked to do: which family, on which platform, in how many shards. Pure.

The list of architectures, the profile and the cost model decide; nothing of it is typed in a workflow. A new row in
the architecture table is built, assembled and tested without an edit there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ci.plan import archs as archlist
from ci.plan.archs import Platform
from ci.plan.costs import concurrency
from ci.plan.plan import BuildPlan, Shard, make_plan
from ci.plan.profiles import find
from flash_attn3_sm121.arch import CAPABILITIES, Family
from flash_attn3_sm121.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A hosted machine. Ubuntu 22.04: what its glibc (2.35) and g++ make installs on manylinux_2_34 systems."""

    label: str
    cores: int
    memory_gb: float  # what is left of the 16 GB beside the system
    job_limit_min: int  # hosted jobs are killed after this


RUNNERS: dict[Platform, Runner] = {
    Platform.X86_64: Runner(label="ubuntu-22.04", cores=4, memory_gb=14.0, job_limit_min=360),
    Platform.AARCH64: Runner(label="ubuntu-22.04-arm", cores=4, memory_gb=14.0, job_limit_min=360),
}

# Our CPU seconds were measured on a faster core than a hosted one.
SLOWER = 1.5
SHARD_MIN = 150.0  # a shard is planned to take at most this long, well under half of the limit
SETUP_MIN = 20  # fetching sources and toolchain, uploading
# The oldest and the newest Python that torch has wheels for; the wheel itself has no Python ABI.
PYTHONS = ("3.10", "3.14")


@dataclass(frozen=True, kw_only=True)
class BuildJob:
    """One machine's share: a shard of one family."""

    name: str
    family: str
    platform: str
    archs: str  # of this family only
    runner: str
    shard: str
    jobs: int  # compilers at once
    estimate_min: int
    timeout_min: int


@dataclass(frozen=True, kw_only=True)
class WheelJob:
    """One wheel: slim (one family) or fat (all of them)."""

    name: str
    platform: str
    runner: str
    pattern: str  # of artifact names


@dataclass(frozen=True, kw_only=True)
class TestJob:
    """One installed wheel under one Python, on its own kind of machine."""

    name: str
    wheel: str
    platform: str
    runner: str
    python: str


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Everything that a workflow run does, job by job."""

    builds: tuple[BuildJob, ...]
    wheels: tuple[WheelJob, ...]
    tests: tuple[TestJob, ...]


def all_targets() -> str:
    """Every capability of the table, as an architecture list."""
    return " ".join(CAPABILITIES)


def shard_minutes(plan: BuildPlan, runner: Runner) -> tuple[int, float]:
    """(compilers at once, minutes) that this plan's shard takes on a runner."""
    units = plan.costs
    at_once = concurrency(units, cores=runner.cores, memory_gb=runner.memory_gb, wanted=None)
    return at_once.jobs, at_once.seconds(units) * SLOWER / 60


def build_jobs(
    family: Family, *, profile: str, archs: str, platform: Platform, cuda: tuple[int, int]
) -> tuple[BuildJob, ...]:
    """The fewest shards of one family that each fit a runner's time and memory."""
    runner = RUNNERS[platform]
    targets = archlist.parse(archs, cuda=cuda)

    def plan(count: int) -> BuildPlan:
        """The first of so many shards; another one's plan differs by its number alone."""
        first = Shard(index=1, count=count)
        return make_plan(
            profile=find(profile), targets=targets, platform=platform, cuda=cuda, families=(family,), shard=first
        )

    whole = plan(1)
    if whole.cost.rss_gb > runner.memory_gb:
        raise UsageError(
            f"family {family}, profile {profile}: a unit wants {whole.cost.rss_gb} GB, {runner.label} has "
            f"{runner.memory_gb}",
            hint="choose larger runners in ci/plan/matrix.py",
        )
    units = len(whole.families[0].units)
    for count in range(1, units + 1):
        first = plan(count)
        shards = [replace(first, shard=Shard(index=index, count=count)) for index in range(1, count + 1)]
        costs = [shard_minutes(shard, runner) for shard in shards]
        if max(minutes for _, minutes in costs) <= SHARD_MIN:
            break
    else:
        raise UsageError(
            f"family {family}, profile {profile}: one unit alone is estimated to take longer than {SHARD_MIN:.0f} min "
            f"on {runner.label}",
            hint="name fewer architectures (--archs): every one adds machine code to every unit",
        )
    return tuple(
        BuildJob(
            name=f"{family}-{platform}-{shard.shard.index}of{count}",
            family=str(family),
            platform=str(platform),
            archs=" ".join(target.name for target in whole.targets),
            runner=runner.label,
            shard=str(shard.shard),
            jobs=at_once,
            estimate_min=math.ceil(minutes),
            timeout_min=min(runner.job_limit_min, math.ceil(2 * minutes) + SETUP_MIN),
        )
        for shard, (at_once, minutes) in zip(shards, costs, strict=True)
    )


def make_matrix(*, profile: str, archs: str, platforms: Sequence[Platform], cuda: tuple[int, int]) -> Matrix:
    """All builds, then slim wheels (where there is more than one family) and the fat one, then tests of the last."""
    targets = archlist.parse(archs, cuda=cuda)
    whole = make_plan(profile=find(profile), targets=targets, platform=platforms[0], cuda=cuda)
    families = [family.family for family in whole.families]
    builds: list[BuildJob] = []
    wheels: list[WheelJob] = []
    tests: list[TestJob] = []
    for platform in platforms:
        runner = RUNNERS[platform].label
        for family in families:
            builds += build_jobs(family, profile=profile, archs=archs, platform=platform, cuda=cuda)
        kinds = [str(family) for family in families]
        made = [(kind, f"artifact-{kind}-{platform}-*") for kind in kinds]
        if len(families) > 1:
            made.append(("fat", f"artifact-*-{platform}-*"))
        wheels += [
            WheelJob(name=f"{kind}-{platform}", platform=str(platform), runner=runner, pattern=pattern)
            for kind, pattern in made
        ]
        tests += [
            TestJob(
                name=f"{platform}-py{python}",
                wheel=f"{made[-1][0]}-{platform}",
                platform=str(platform),
                runner=runner,
                python=python,
            )
            for python in PYTHONS
        ]
    return Matrix(builds=tuple(builds), wheels=tuple(wheels), tests=tuple(tests))


def document(matrix: Matrix) -> dict[str, Any]:
    """As GitHub's `strategy.matrix` wants it: part -> {"include": [...]}."""
    return {part: {"include": list(jobs)} for part, jobs in asdict(matrix).items()}
