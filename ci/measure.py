"""What our units cost against upstream's own files and flags, group by group: planning and sums. Pure.

A group is the smallest set for which both sides make the same variants: forward by head dim, paged and split (upstream
has a file a dtype, each with both softcaps and effective archs; we have a file a softcap with both dtypes), backward
by head dim, and each of the common files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ci.plan import FamilyPlan, PlannedUnit
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
    """The same variants on both sides."""

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


@dataclass(frozen=True, kw_only=True)
class Result:
    """One measured group."""

    name: str
    ours: tuple[Cost, ...]
    upstream: tuple[Cost, ...]


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


def groups(plan: FamilyPlan) -> tuple[Group, ...]:
    """Every group of a full mma.sync family; what has no counterpart on the other side is in none."""
    units, dims, dtypes = plan.units, plan.selection.head_dims, plan.selection.dtypes
    found = _forward_groups(units, dtypes, dims)
    for dim in dims:
        ours = tuple(item for item in units if item.unit.kind == "bwd" and item.unit.head_dim == dim)
        files = tuple(
            f"instantiations/flash_bwd_hdim{dim}_{dtype}{cap}_sm80.cu" for dtype in dtypes for cap in ("", "_softcap")
        )
        found.append(Group(name=f"bwd_hd{dim}", kind="bwd", ours=ours, upstream=files))
    for kind, file in (("combine", "flash_fwd_combine.cu"), ("prepare", "flash_prepare_scheduler.cu")):
        ours = tuple(item for item in units if item.unit.kind == kind)
        found.append(Group(name=kind, kind=kind, ours=ours, upstream=(file,)))
    return tuple(group for group in found if group.ours)


def sample(found: Sequence[Group], count: int) -> tuple[Group, ...]:
    """`count` groups, spread evenly over kinds in proportion, and within a kind over the list; always the same ones."""
    kinds = {group.kind: [g for g in found if g.kind == group.kind] for group in found}
    chosen: list[Group] = []
    order = sorted(kinds, key=lambda kind: -len(kinds[kind]))
    quota = {kind: max(1, round(count * len(kinds[kind]) / len(found))) for kind in order}
    for kind in order:
        take = min(quota[kind], len(kinds[kind]), max(0, count - len(chosen)))
        step = len(kinds[kind]) / take if take else 0
        chosen += [kinds[kind][int(i * step + step / 2)] for i in range(take)]
    return tuple(group for group in found if group in chosen)


def carried(document: Mapping[str, Any], *, facts: Mapping[str, Any]) -> list[Result]:
    """The groups of an earlier document, provided it was measured from the same inputs on the same kind of machine."""
    if not document:
        return []
    for name, wanted in facts.items():
        if document.get(name) != wanted:
            raise UsageError(
                f"cannot go on with the earlier measurement: its {name} is {document.get(name)}, here it is {wanted}",
                hint="another --output, or leave --resume out to begin anew",
            )
    return [
        Result(
            name=row["group"],
            ours=tuple(Cost(**cost) for cost in row["ours"]),
            upstream=tuple(Cost(**cost) for cost in row["upstream"]),
        )
        for row in document["results"]
    ]


def _total(costs: Sequence[Cost]) -> float:
    return round(sum(cost.cpu_s for cost in costs), 1)


def summary(results: Sequence[Result], *, of: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The document: each group with both sides, sums over what was measured, and what part of the whole that is."""
    ours = _total([cost for result in results for cost in result.ours])
    theirs = _total([cost for result in results for cost in result.upstream])
    return {
        "schema": 1,
        **facts,
        "groups_measured": len(results),
        "groups": of,
        "ours_cpu_s": ours,
        "upstream_cpu_s": theirs,
        "ratio": round(ours / theirs, 3) if theirs else None,
        "ours_peak_rss_gb": max((c.rss_gb for r in results for c in r.ours), default=0),
        "upstream_peak_rss_gb": max((c.rss_gb for r in results for c in r.upstream), default=0),
        "results": [
            {
                "group": result.name,
                "ours_cpu_s": _total(result.ours),
                "upstream_cpu_s": _total(result.upstream),
                "ours": [asdict(cost) for cost in result.ours],
                "upstream": [asdict(cost) for cost in result.upstream],
            }
            for result in results
        ],
    }
