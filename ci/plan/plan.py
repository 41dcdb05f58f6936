"""The plan: which families, which files, which flags, at which cost. Frozen, pure and printable."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ci.plan import costs, flags
from ci.plan.archs import Platform, Target, gencode
from ci.plan.costs import Cost, Work
from ci.plan.profiles import Selection, select
from ci.plan.units import Unit, units
from flash_attn3_sm121.arch import CAPABILITIES, FAMILIES, PROXY_DEVICES, Family, Image
from flash_attn3_sm121.builds import Profile
from flash_attn3_sm121.errors import ArchError, UsageError


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Part `index` of `count` (from 1) of every family's files; parse() and str() are inverse."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        first, _, second = text.partition("/")
        if not (first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second)):
            raise UsageError(f"not a shard: {text!r}", hint="write it as i/n with 1 <= i <= n, for example 2/4")
        return cls(index=int(first), count=int(second))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def whole(self) -> bool:
        return self.count == 1


@dataclass(frozen=True, kw_only=True)
class PlannedUnit:
    """One file to compile, with its flags and cost."""

    unit: Unit
    flags: tuple[str, ...]
    cost: Cost
    shard: int  # which shard compiles it, from 1
    measured: bool = False  # whether the cost is one that this machine has measured, and no estimate


@dataclass(frozen=True, kw_only=True)
class FamilyPlan:
    """One family library."""

    selection: Selection
    targets: tuple[Target, ...]
    images: tuple[str, ...]
    ptx: tuple[str, ...]
    units: tuple[PlannedUnit, ...]
    proxy: str  # the device that a test build is for, else empty

    @property
    def family(self) -> Family:
        return self.selection.family

    @property
    def namespace(self) -> str:
        return f"flash_attn3_{self.family}"

    @property
    def library(self) -> str:
        return f"flash_attn3_{self.family}.so"

    @property
    def cost(self) -> Cost:
        return costs.total(tuple(planned.cost for planned in self.units))

    def of_shard(self, shard: Shard) -> tuple[PlannedUnit, ...]:
        return tuple(planned for planned in self.units if shard.whole or planned.shard == shard.index)


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """Everything that a build will do, before it does anything."""

    profile: str
    platform: Platform
    cuda: tuple[int, int]
    shard: Shard
    families: tuple[FamilyPlan, ...]
    proxy: str  # as in FamilyPlan

    @property
    def costs(self) -> list[Cost]:
        """What each unit of this shard costs."""
        return [planned.cost for family in self.families for planned in family.of_shard(self.shard)]

    @property
    def cost(self) -> Cost:
        return costs.total(tuple(self.costs))

    @property
    def targets(self) -> tuple[Target, ...]:
        return tuple(sorted((t for f in self.families for t in f.targets), key=lambda t: t.image.number))


def proxy_image(target: Target, name: str) -> Image:
    """The image that stands in for a family's own: plain code of a device at hand, e.g. sm_90 for 9.0."""
    if name not in PROXY_DEVICES:
        raise ArchError(f"no proxy build for {name!r}", hint=f"allowed: {', '.join(PROXY_DEVICES)}")
    if target.capability.family is Family.SM90:
        raise ArchError("a proxy build is for the mma.sync families; 9.0 is built directly")
    return Image(kind="sm", number=CAPABILITIES[name].number)


def _assign(planned: Sequence[PlannedUnit], count: int) -> tuple[PlannedUnit, ...]:
    """Assign units to shards, the longest first, each to the shard with the least work so far. Their order is kept."""
    load = [0.0] * count
    where: dict[str, int] = {}
    for item in sorted(planned, key=lambda item: (-item.cost.cpu_s, item.unit.name)):
        index = min(range(count), key=lambda i: (load[i], i))
        load[index] += item.cost.cpu_s
        where[item.unit.name] = index + 1
    return tuple(replace(item, shard=where[item.unit.name]) for item in planned)


def plan_family(chosen: Selection, targets: tuple[Target, ...], *, proxy: str = "", shards: int = 1) -> FamilyPlan:
    """The plan of one family: its machine code, files and flags."""
    if proxy:
        code: tuple[Image, ...] = (proxy_image(targets[0], proxy),)
    else:
        code = tuple(image for target in targets for image in target.code)
    chosen = chosen.on(code)
    names = {kind: tuple(str(image) for image in code if image.kind == kind) for kind in ("sm", "compute")}
    images, ptx = names["sm"], names["compute"]
    family = flags.family_defines(chosen, proxy=bool(proxy))

    def planned(unit: Unit) -> PlannedUnit:
        own = tuple(image for image in code if image.converts_e4m3 or not unit.e4m3)
        defines = (*family, *flags.feature_defines(chosen, unit.kind))
        return PlannedUnit(
            unit=unit,
            flags=flags.unit_flags(unit, chosen.family, defines, gencode=gencode(own), images=(*images, *ptx)),
            cost=costs.estimate(unit, family=chosen.family, images=sum(image.kind == "sm" for image in own)),
            shard=1,
        )

    return FamilyPlan(
        selection=chosen,
        targets=targets,
        images=images,
        ptx=ptx,
        units=_assign([planned(unit) for unit in units(chosen)], shards),
        proxy=proxy,
    )


def make_plan(
    *,
    profile: Profile,
    targets: tuple[Target, ...],
    platform: Platform,
    cuda: tuple[int, int],
    families: tuple[Family, ...] = (),
    shard: Shard | None = None,
    proxy: str = "",
) -> BuildPlan:
    """Every family that the targets need, in the table's order. `families` narrows to some of those."""
    shard = shard or Shard()
    needed = tuple(family for family in FAMILIES if any(t.capability.family is family for t in targets))
    unneeded = [str(family) for family in families if family not in needed]
    if unneeded:
        names = ", ".join(target.name for target in targets)
        raise UsageError(
            f"family {', '.join(unneeded)} serves none of the architectures {names}",
            hint=f"families of this list: {', '.join(str(family) for family in needed)}",
        )
    return BuildPlan(
        profile=profile.name,
        platform=platform,
        cuda=cuda,
        shard=shard,
        proxy=proxy,
        families=tuple(
            plan_family(
                select(profile, family),
                tuple(target for target in targets if target.capability.family is family),
                proxy=proxy,
                shards=shard.count,
            )
            for family in needed
            if not families or family in families
        ),
    )


def with_measured(plan: BuildPlan, known: Mapping[Work, Cost]) -> BuildPlan:
    """The plan with costs that were measured, where they are known.

    Shards stay as the table divided them: every machine has to come to the same ones.
    """

    def planned(item: PlannedUnit, family: FamilyPlan) -> PlannedUnit:
        cost = known.get(costs.work_of(item.unit, images=family.images))
        return item if cost is None else replace(item, cost=cost, measured=True)

    families = tuple(
        replace(family, units=tuple(planned(item, family) for item in family.units)) for family in plan.families
    )
    return replace(plan, families=families)


def to_json(plan: BuildPlan) -> str:
    """The plan for programs: stable keys, everything that decides the bytes of the libraries."""
    return json.dumps(_document(plan), indent=1, sort_keys=True) + "\n"


def _document(plan: BuildPlan) -> dict[str, Any]:
    return {
        "schema": 1,
        "profile": plan.profile,
        "platform": str(plan.platform),
        "cuda": ".".join(str(part) for part in plan.cuda),
        "shard": str(plan.shard),
        "proxy": plan.proxy,
        "cpu_s": plan.cost.cpu_s,
        "families": [
            {
                "family": str(family.family),
                "library": family.library,
                "images": list(family.images),
                "ptx": list(family.ptx),
                "dtypes": list(family.selection.dtypes),
                "head_dims": list(family.selection.head_dims),
                "features": sorted(family.selection.features),
                "units": [
                    {
                        "name": item.unit.name,
                        "kind": item.unit.kind,
                        "contents": list(item.unit.contents),
                        "kernels": item.unit.kernels,
                        "flags": list(item.flags),
                        "cpu_s": item.cost.cpu_s,
                        "rss_gb": item.cost.rss_gb,
                        "shard": item.shard,
                    }
                    for item in family.units
                ],
            }
            for family in plan.families
        ],
    }
