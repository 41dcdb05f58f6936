"""Assembles the parts of a wheel: checks that they belong together, and joins shards to whole families."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ci.build.artifact import Artifact, Identity, Part
from ci.plan import archs, profiles
from ci.plan.plan import FamilyPlan, Shard, plan_family
from ci.toolchain.installed import parse_version
from flash_attn3_sm121.arch import FAMILIES, Family
from flash_attn3_sm121.errors import AssembleError


def check_together(parts: Sequence[Part]) -> Identity:
    """Check that all parts were made from the same inputs. Raises AssembleError that names every difference."""
    if not parts:
        raise AssembleError("no artifacts were given", hint="python -m ci build makes them")
    first = parts[0]
    for part in parts[1:]:
        differences = first.artifact.identity.differences(part.artifact.identity)
        if differences:
            lines = "".join(f"\n  {line}" for line in differences)
            raise AssembleError(
                f"{first.place} and {part.place} do not belong together; they differ in:{lines}",
                hint="build them from the same sources with the same toolchain and profile",
            )
    return first.artifact.identity


def by_family(parts: Sequence[Part]) -> dict[str, tuple[Part, ...]]:
    """The parts of each family: one library, or all shards. Raises AssembleError for missing and double ones."""
    groups: dict[str, list[Part]] = {}
    for part in parts:
        groups.setdefault(part.artifact.family, []).append(part)
    for name, group in groups.items():
        if any(part.artifact.kind == "library" for part in group):
            if len(group) > 1:
                raise AssembleError(
                    f"family {name} is there {len(group)} times: {', '.join(str(p.place) for p in group)}"
                )
        else:
            _check_shards(name, group)
    order = [str(family) for family in FAMILIES]
    return {name: tuple(groups[name]) for name in sorted(groups, key=order.index)}


def _check_shards(name: str, group: Sequence[Part]) -> None:
    shards = [Shard.parse(part.artifact.shard) for part in group]
    counts = {shard.count for shard in shards}
    targets = {part.artifact.targets for part in group}
    if len(counts) > 1 or len(targets) > 1:
        kinds = sorted(f"{part.artifact.shard} of {' '.join(part.artifact.targets)}" for part in group)
        raise AssembleError(f"family {name}: the shards are of different builds: {', '.join(kinds)}")
    (count,) = counts
    have = Counter(shard.index for shard in shards)
    missing = [f"{index}/{count}" for index in range(1, count + 1) if index not in have]
    if missing:
        raise AssembleError(
            f"family {name}: of {count} shards, {', '.join(missing)} is missing",
            hint=f"python -m ci build --family {name} --shard {missing[0]}",
        )
    for shard, part in zip(shards, group, strict=True):
        if have[shard.index] > 1:
            twice = [str(p.place) for p, s in zip(group, shards, strict=True) if s == shard]
            raise AssembleError(f"family {name}: shard {part.artifact.shard} is there twice: {', '.join(twice)}")


def plan_of(artifact: Artifact) -> FamilyPlan:
    """The plan that an artifact was made from. Raises AssembleError where this checkout would plan other flags."""
    cuda = parse_version(artifact.identity.cuda, origin=f"artifact of {artifact.family}")
    chosen = profiles.select(profiles.find(artifact.identity.profile), Family(artifact.family))
    targets = archs.parse(" ".join(artifact.targets), cuda=cuda)
    planned = plan_family(chosen, targets, proxy=artifact.identity.proxy)
    flags = {item.unit.name: item.flags for item in planned.units}
    for name, words in artifact.flags.items():
        if flags.get(name) != words:
            raise AssembleError(
                f"family {artifact.family}, unit {name}: compiled with other flags than this checkout plans:\n"
                f"  compiled: {' '.join(words)}\n  planned:  {' '.join(flags.get(name, ('no such unit',)))}",
                hint="assemble with the checkout that built the artifacts",
            )
    return planned


def joined(group: Sequence[Part]) -> Part:
    """The one part that a family's parts come to: all units, in the plan's order, whichever shard made them.

    Raises:
        AssembleError: this checkout would plan other flags, or an object is missing.
    """
    first = group[0]
    if first.plan is not None:
        return first
    flags = {unit: words for part in group for unit, words in part.artifact.flags.items()}
    plan = plan_of(replace(first.artifact, flags=flags))
    if first.artifact.kind == "library":
        return replace(first, plan=plan)
    paths = {name: path for part in group for name, path in part.paths.items()}
    hashes = {name: sha256 for part in group for name, sha256 in part.artifact.files.items()}
    reports = {report.unit: report for part in group for report in part.artifact.reports}
    kernels = {name: sha256 for part in group for name, sha256 in part.artifact.kernels.items()}
    order = [item.unit.name for item in plan.units]
    missing = [name for name in order if f"{name}.o" not in paths]
    if missing or len(paths) != len(order):
        unknown = sorted(set(paths) - {f"{name}.o" for name in order})
        raise AssembleError(f"family {plan.family}: objects missing {missing}, unknown {unknown}")
    artifact = replace(
        first.artifact,
        flags={name: flags[name] for name in order},
        files={f"{name}.o": hashes[f"{name}.o"] for name in order},
        reports=tuple(reports[name] for name in order),
        kernels=kernels,
    )
    return Part(artifact=artifact, paths={f"{name}.o": paths[f"{name}.o"] for name in order}, plan=plan)
