"""From artifacts to a wheel: artifacts that belong together, shards joined, facts, verdict, wheel."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ci.build import family
from ci.build.artifact import Artifact, Identity, read
from ci.plan import archs, profiles
from ci.plan.cuda import parse as parse_cuda
from ci.plan.plan import FamilyPlan, Shard, plan_family
from ci.plan.platforms import Platform
from ci.verify import policy, report
from ci.verify.gather import LibraryReading
from ci.verify.judge import judge_library
from ci.wheel import provenance
from ci.wheel.wheel import WheelName, license_files, wheel_files
from flash_attn3_sm121.arch import FAMILIES, Family
from flash_attn3_sm121.errors import AssembleError
from flash_attn3_sm121.native.buildfacts import BuildFacts


@dataclass(frozen=True, kw_only=True)
class Part:
    """An artifact and the folder that it lies in."""

    folder: Path
    artifact: Artifact


def read_parts(folders: Sequence[Path]) -> tuple[Part, ...]:
    return tuple(Part(folder=folder, artifact=read(folder)) for folder in folders)


def check_together(parts: Sequence[Part]) -> Identity:
    """All parts must be of one making. Raises AssembleError that names every difference."""
    if not parts:
        raise AssembleError("no artifacts were given", hint="python -m ci build makes them")
    first = parts[0]
    for part in parts[1:]:
        differences = first.artifact.identity.differences(part.artifact.identity)
        if differences:
            lines = "".join(f"\n  {line}" for line in differences)
            raise AssembleError(
                f"{first.folder} and {part.folder} do not belong together; they differ in:{lines}",
                hint="build them from the same sources with the same toolchain and profile",
            )
    return first.artifact.identity


def by_family(parts: Sequence[Part]) -> dict[str, tuple[Part, ...]]:
    """Parts a family, complete and without a double: one library, or all shards of one."""
    groups: dict[str, list[Part]] = {}
    for part in parts:
        groups.setdefault(part.artifact.family, []).append(part)
    for name, group in groups.items():
        if any(part.artifact.kind == "library" for part in group):
            if len(group) > 1:
                raise AssembleError(
                    f"family {name} is there {len(group)} times: {', '.join(str(p.folder) for p in group)}"
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
            twice = [str(p.folder) for p, s in zip(group, shards, strict=True) if s == shard]
            raise AssembleError(f"family {name}: shard {part.artifact.shard} is there twice: {', '.join(twice)}")


def plan_of(artifact: Artifact) -> FamilyPlan:
    """The plan that an artifact was made from. Raises AssembleError where this checkout would plan other flags."""
    cuda = parse_cuda(artifact.identity.cuda, origin=f"artifact of {artifact.family}")
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


def joined(group: Sequence[Part]) -> Artifact:
    """The one artifact that a family's parts come to: all units, in the plan's order, whichever shard made them."""
    first = group[0].artifact
    if len(group) == 1:
        return first
    flags = {unit: words for part in group for unit, words in part.artifact.flags.items()}
    order = [item.unit.name for item in plan_of(replace(first, flags=flags)).units]
    reports = {report.unit: report for part in group for report in part.artifact.reports}
    return replace(
        first,
        flags={unit: flags[unit] for unit in order if unit in flags},
        files={name: sha256 for part in group for name, sha256 in part.artifact.files.items()},
        reports=tuple(reports[unit] for unit in order if unit in reports),
    )


def shard_objects(group: Sequence[Part]) -> tuple[FamilyPlan, tuple[tuple[str, Path], ...]]:
    """All units' objects of a sharded family, in the plan's order, ready to be linked."""
    planned = plan_of(joined(group))
    found = {name.removesuffix(".o"): part.folder / name for part in group for name in part.artifact.files}
    names = [item.unit.name for item in planned.units]
    missing = [name for name in names if name not in found]
    if missing or len(found) != len(names):
        raise AssembleError(
            f"family {planned.family}: objects missing {missing}, unknown {sorted(set(found) - set(names))}"
        )
    return planned, tuple((name, found[name]) for name in names)


@dataclass(frozen=True, kw_only=True)
class Library:
    """A family library on its way into a wheel."""

    path: Path
    reading: LibraryReading
    facts: BuildFacts
    artifact: Artifact


def library(artifact: Artifact, path: Path, reading: LibraryReading) -> Library:
    """Put facts beside a linked library."""
    platform = Platform.parse(artifact.identity.platform)
    planned = plan_of(artifact)
    facts = family.facts_of(planned, identity=artifact.identity, sha256=reading.sha256, platform_tag=platform.tag)
    return Library(path=path, reading=reading, facts=facts, artifact=artifact)


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """A wheel ready to be written, with the verdict about its libraries."""

    name: WheelName
    files: Mapping[str, bytes]
    verdict: Mapping[str, Any]


def assemble(
    libraries: Sequence[Library],
    *,
    lock: Mapping[str, object],
    edits: Sequence[Mapping[str, str]],
    schemas: Mapping[str, str],
    licenses: Sequence[Path],
) -> Assembly:
    """The wheel of these libraries: its name, its files, and what verify says about each library."""
    identity = libraries[0].artifact.identity
    checks = [check for item in libraries for check in judge_library(item.reading, item.facts, schemas=schemas)]
    facts = [item.facts for item in libraries]
    verdict = report.document([item.reading for item in libraries], checks, facts=facts)
    story = provenance.document(
        [item.artifact for item in libraries],
        lock=lock,
        edits=edits,
        libraries={item.reading.name: item.reading.sha256 for item in libraries},
        schemas=schemas,
    )
    inside: dict[str, bytes] = {
        "verify.json": report.to_json(verdict).encode(),
        "provenance.json": provenance.to_json(story).encode(),
    }
    for item in libraries:
        inside[item.reading.name] = item.path.read_bytes()
        inside[f"{item.facts.family}.json"] = item.facts.to_json().encode()
    versions = [version for item in libraries for _, version in item.reading.elf.versions]
    targets = [target for item in libraries for target in item.artifact.targets]
    name = WheelName.native(
        pin=identity.pin,
        targets=sorted(targets, key=lambda text: float(text.split("+")[0].rstrip("af"))),
        profile=identity.profile,
        proxy=bool(identity.proxy),
        platform_tag=policy.lowest(versions).tag(Platform.parse(identity.platform)),
    )
    files = wheel_files(name, libraries=inside, licenses=license_files(licenses))
    return Assembly(name=name, files=files, verdict=json.loads(report.to_json(verdict)))
