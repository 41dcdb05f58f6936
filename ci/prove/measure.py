"""The compile cost of our units compared with upstream's files and flags, by groups: planning and sums. Pure.

A group is the smallest set for which both sides make the same variants: forward by head dim, paged and split (upstream
has a file a dtype, each with both softcaps and effective archs; we have a file a softcap with both dtypes), backward
by head dim, and each of the common files. Files are measured in an order that covers every group early, so that a
measurement that is not over yet says something about the whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ci.plan import costs
from ci.plan.plan import FamilyPlan, PlannedUnit
from flash_attn3_sm121.errors import UsageError

# Upstream's nvcc flags (hopper/setup.py) with what torch's extension builder adds to them.
UPSTREAM_FLAGS = (
    "-O3",
    "-std=c++17",
    "--ftemplate-backtrace-limit=0",
    "--use_fast_math",
    "--resource-usage",
    "-lineinfo",
    "-DCUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED",
    "-DCUTLASS_ENABLE_GDC_FOR_SM90",
    "-DCUTLASS_DEBUG_TRACE_LEVEL=0",
    "-DNDEBUG",
    "-D__CUDA_NO_HALF_OPERATORS__",
    "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-D__CUDA_NO_HALF2_OPERATORS__",
    "--expt-relaxed-constexpr",
    "-Xcompiler=-fPIC",
)


def upstream_gencode(file: str) -> tuple[str, ...]:
    """Upstream compiles everything for 9.0a but files whose name ends in _sm80, which it compiles for 8.0."""
    arch = ("80", "80") if file.endswith("_sm80.cu") else ("90a", "90a")
    return ("-gencode", f"arch=compute_{arch[0]},code=sm_{arch[1]}")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Our units and upstream's files that compile the same kernel variants."""

    name: str
    kind: str
    ours: tuple[PlannedUnit, ...]
    upstream: tuple[str, ...]  # files below hopper/


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One compiled file."""

    file: str
    cpu_s: float
    wall_s: float
    rss_gb: float


@dataclass(kw_only=True)
class Result:
    """The costs measured in a group so far, by file."""

    ours: dict[str, Cost] = field(default_factory=dict)
    upstream: dict[str, Cost] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One file to compile: a unit of ours, or a file of upstream's."""

    group: Group
    file: str
    ours: PlannedUnit | None = None


def _forward_groups(units: Sequence[PlannedUnit], dtypes: Sequence[str], dims: Sequence[int]) -> list[Group]:
    groups = []
    for dim in dims:
        for paged in (False, True):
            for split in (False, True):
                words = "".join(("_paged" if paged else "", "_split" if split else ""))
                wanted = {"_".join(filter(None, (words.strip("_"), cap))) or "plain" for cap in ("", "softcap")}
                ours = [
                    item
                    for item in units
                    if item.unit.kind == "fwd"
                    and item.unit.head_dim == dim
                    and {text.split()[0] for text in item.unit.contents} <= wanted
                ]
                files = [f"instantiations/flash_fwd_hdim{dim}_{dtype}{words}_softcapall_sm80.cu" for dtype in dtypes]
                name = f"fwd_hd{dim}{words}"
                groups.append(Group(name=name, kind="fwd", ours=tuple(ours), upstream=tuple(files)))
    return groups


def _is_upstreams(name: str) -> bool:
    """Whether upstream has the kernels of a unit. Fp8 K and V, two head dims, and the ordered backward are ours."""
    return re.fullmatch(r"(fwd|bwd)_hd\d+_[a-z]\w*|combine|prepare", name) is not None


def groups(plan: FamilyPlan) -> tuple[Group, ...]:
    """The groups of a full mma.sync family. Files without a counterpart on the other side are in none."""
    units = [item for item in plan.units if _is_upstreams(item.unit.name)]
    dims, dtypes = plan.selection.head_dims, plan.selection.dtypes
    every = _forward_groups(units, dtypes, dims)
    for dim in dims:
        ours = tuple(item for item in units if item.unit.kind == "bwd" and item.unit.head_dim == dim)
        files = tuple(
            f"instantiations/flash_bwd_hdim{dim}_{dtype}{cap}_sm80.cu" for dtype in dtypes for cap in ("", "_softcap")
        )
        every.append(Group(name=f"bwd_hd{dim}", kind="bwd", ours=ours, upstream=files))
    for kind, file in (("combine", "flash_fwd_combine.cu"), ("prepare", "flash_prepare_scheduler.cu")):
        ours = tuple(item for item in units if item.unit.kind == kind)
        every.append(Group(name=kind, kind=kind, ours=ours, upstream=(file,)))
    return tuple(group for group in every if group.ours)


def sample(every: Sequence[Group], count: int) -> tuple[Group, ...]:
    """`count` groups, spread evenly over kinds in proportion, and within a kind over the list; always the same ones."""
    kinds = {group.kind: [g for g in every if g.kind == group.kind] for group in every}
    chosen: list[Group] = []
    order = sorted(kinds, key=lambda kind: -len(kinds[kind]))
    quota = {kind: max(1, round(count * len(kinds[kind]) / len(every))) for kind in order}
    for kind in order:
        take = min(quota[kind], len(kinds[kind]), max(0, count - len(chosen)))
        step = len(kinds[kind]) / take if take else 0
        chosen += [kinds[kind][int(i * step + step / 2)] for i in range(take)]
    return tuple(group for group in every if group in chosen)


def tasks(picked: Sequence[Group], results: Mapping[str, Result]) -> list[Task]:
    """What is still to be compiled: our units, then the first upstream file of every group, then the second."""
    ordered: list[tuple[float, Task]] = []
    for group in picked:
        have = results.get(group.name, Result())
        ordered += [
            (-1.0, Task(group=group, file=item.unit.file, ours=item))
            for item in group.ours
            if item.unit.file not in have.ours
        ]
        ordered += [
            (index / len(group.upstream), Task(group=group, file=file))
            for index, file in enumerate(group.upstream)
            if file not in have.upstream
        ]
    return [task for _, task in sorted(ordered, key=lambda pair: pair[0])]


# What an upstream file costs by kind: for the ETA, and for how many are compiled at once.
UPSTREAM_COST = {
    "fwd": costs.Cost(cpu_s=320.0, rss_gb=9.0),
    "bwd": costs.Cost(cpu_s=240.0, rss_gb=9.0),
    "combine": costs.Cost(cpu_s=92.0, rss_gb=3.1),
    "prepare": costs.Cost(cpu_s=42.0, rss_gb=1.4),
}


def estimate(task: Task) -> costs.Cost:
    return UPSTREAM_COST[task.group.kind] if task.ours is None else task.ours.cost


def carried(document: Mapping[str, Any], *, facts: Mapping[str, Any]) -> dict[str, Result]:
    """The results in an earlier document.

    Raises:
        UsageError: it was measured from other inputs, or on another kind of machine.
    """
    if not document:
        return {}
    for name, wanted in facts.items():
        if document.get(name) != wanted:
            raise UsageError(
                f"cannot go on with the earlier measurement: its {name} is {document.get(name)}, here it is {wanted}",
                hint="another --output, or leave --resume out to begin anew",
            )
    return {
        row["group"]: Result(
            ours={cost["file"]: Cost(**cost) for cost in row["ours"]},
            upstream={cost["file"]: Cost(**cost) for cost in row["upstream"]},
        )
        for row in document["results"]
    }


def _total(files: Mapping[str, Cost]) -> float:
    return sum(cost.cpu_s for cost in files.values())


def _sums(ours: float, upstream: float) -> dict[str, Any]:
    return {
        "ours_cpu_s": round(ours, 1),
        "upstream_cpu_s": round(upstream, 1),
        "ratio": round(ours / upstream, 3) if upstream else None,
    }


def _whole(every: Sequence[Group], results: Mapping[str, Result]) -> dict[str, Any] | None:
    """All groups; an upstream file that was not measured counts as the mean of its group's files that were.

    None where that cannot be said: a group without any file of upstream's, or without all of ours.
    """
    ours = theirs = 0.0
    counted = 0
    for group in every:
        have = results.get(group.name, Result())
        if len(have.ours) < len(group.ours) or not have.upstream:
            return None
        ours += _total(have.ours)
        theirs += _total(have.upstream) * len(group.upstream) / len(have.upstream)
        counted += len(group.upstream) - len(have.upstream)
    return {**_sums(ours, theirs), "upstream_files_counted_as_the_mean_of_their_group": counted}


def summary(every: Sequence[Group], results: Mapping[str, Result], *, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The document: the cost of each file, sums over the groups that are complete, and an estimate for all groups."""
    known = {group.name: results[group.name] for group in every if group.name in results}
    complete = [
        known[group.name]
        for group in every
        if group.name in known
        and len(known[group.name].ours) == len(group.ours)
        and len(known[group.name].upstream) == len(group.upstream)
    ]
    return {
        "schema": 2,
        **facts,
        "groups": len(every),
        "groups_measured": len(complete),
        "upstream_files": sum(len(group.upstream) for group in every),
        "upstream_files_measured": sum(len(result.upstream) for result in known.values()),
        "measured_groups": _sums(sum(_total(r.ours) for r in complete), sum(_total(r.upstream) for r in complete)),
        "whole": _whole(every, results),
        "ours_peak_rss_gb": max((c.rss_gb for r in known.values() for c in r.ours.values()), default=0),
        "upstream_peak_rss_gb": max((c.rss_gb for r in known.values() for c in r.upstream.values()), default=0),
        "results": [
            {
                "group": name,
                "ours_cpu_s": round(_total(result.ours), 1),
                "upstream_cpu_s": round(_total(result.upstream), 1),
                "ours": [asdict(cost) for cost in result.ours.values()],
                "upstream": [asdict(cost) for cost in result.upstream.values()],
            }
            for name, result in known.items()
        ],
    }
