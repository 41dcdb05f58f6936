"""Artifacts: what belongs together is joined, what does not is refused with the difference named."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ci.build import artifact
from ci.build.artifact import Artifact, Identity, Part
from ci.cache.folders import file_sha256
from ci.cache.objects import KernelUsage, ObjectReport
from ci.plan import archs as archlist
from ci.plan.plan import FamilyPlan, Shard, plan_family
from ci.plan.profiles import find, select
from ci.wheel import assemble
from flash_attn3_sm121.arch import Family
from flash_attn3_sm121.errors import AssembleError

IDENTITY = Identity(
    pin="3effce8",
    sources="a-b",
    edits="e" * 64,
    cuda="13.0",
    toolchain="t" * 64,
    cxx="g++ 12.2.0",
    torch_headers="h",
    profile="nanochat",
    platform="aarch64",
    version="3.0.0.post1",
    proxy="",
)


def planned(family: Family = Family.SM8X, archs: str = "12.1", shards: int = 1) -> FamilyPlan:
    targets = archlist.parse(archs, cuda=(13, 0))
    return plan_family(select(find("nanochat"), family), targets, shards=shards)


def report(name: str) -> ObjectReport:
    usage = KernelUsage(
        kernel="_Zk", image="sm_121", registers=255, stack=0, spill_stores=0, spill_loads=0, static_smem=0
    )
    return ObjectReport(unit=name, key="k", sha256="s", size=1, cpu_s=1, wall_s=1, rss_gb=1, usage=(usage,))


def make(folder: Path, plan: FamilyPlan, *, shard: str = "1/1", identity: Identity = IDENTITY) -> Part:
    """An artifact on disk, with files that hold their own names."""
    part = Shard.parse(shard)
    units = plan.of_shard(part)
    names = [plan.library] if part.whole else [item.unit.object for item in units]
    source = folder / "made"
    source.mkdir(parents=True, exist_ok=True)
    files = {}
    for name in names:
        (source / name).write_text(name, encoding="ascii")
        files[name] = source / name
    described = Artifact(
        kind="library" if part.whole else "objects",
        family=str(plan.family),
        identity=identity,
        targets=tuple(target.name for target in plan.targets),
        flags={item.unit.name: item.flags for item in units},
        shard=shard,
        files={name: file_sha256(path) for name, path in files.items()},
        reports=tuple(report(item.unit.name) for item in units),
        kernels={"kernel": "hash of its PTX"},
    )
    return artifact.read(artifact.write(folder / "artifacts", Part(artifact=described, paths=files)))


def folder_of(part: Part) -> Path:
    return next(iter(part.paths.values())).parent


def test_round_trip(tmp_path: Path) -> None:
    part = make(tmp_path, planned())
    assert folder_of(part).name == "sm8x-aarch64-nanochat"
    assert part.artifact.identity == IDENTITY and part.artifact.reports[0].usage[0].registers == 255
    made = {"flash_attn3_sm8x.so": tmp_path / "made" / "flash_attn3_sm8x.so"}
    again = artifact.write(tmp_path / "artifacts", Part(artifact=part.artifact, paths=made))
    assert artifact.read(again) == part
    assert not [path for path in (tmp_path / "artifacts").iterdir() if path.name.startswith(".")]


def test_damage_is_found(tmp_path: Path) -> None:
    folder = folder_of(make(tmp_path, planned()))
    (folder / "flash_attn3_sm8x.so").write_text("other", encoding="ascii")
    with pytest.raises(AssembleError, match="expected sha256"):
        artifact.read(folder)
    (folder / "flash_attn3_sm8x.so").unlink()
    with pytest.raises(AssembleError, match=r"flash_attn3_sm8x\.so is missing"):
        artifact.read(folder)
    (folder / "artifact.json").write_text("{}", encoding="ascii")
    with pytest.raises(AssembleError, match="schema"):
        artifact.read(folder)
    shutil.rmtree(folder)
    with pytest.raises(AssembleError, match="no artifact in"):
        artifact.read(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pin", "0000000"),
        ("edits", "f" * 64),
        ("toolchain", "u" * 64),
        ("cxx", "g++ 13"),
        ("profile", "full"),
        ("platform", "x86_64"),
        ("proxy", "9.0"),
    ],
)
def test_differences_are_named(tmp_path: Path, field: str, value: str) -> None:
    first = make(tmp_path / "one", planned())
    other = make(tmp_path / "two", planned(Family.SM80, "10.0"))
    strange = replace(other, artifact=replace(other.artifact, identity=replace(IDENTITY, **{field: value})))
    assert assemble.check_together([first, other]) == IDENTITY
    with pytest.raises(AssembleError) as caught:
        assemble.check_together([first, strange])
    assert f"{field}: {getattr(IDENTITY, field)} / {value}" in str(caught.value)


def test_nothing_to_assemble() -> None:
    with pytest.raises(AssembleError, match="no artifacts"):
        assemble.check_together([])


def test_families_in_order_and_once(tmp_path: Path) -> None:
    small, large = make(tmp_path / "a", planned()), make(tmp_path / "b", planned(Family.SM80, "10.0"))
    assert list(assemble.by_family([small, large])) == ["sm80", "sm8x"]
    with pytest.raises(AssembleError, match="family sm8x is there 2 times"):
        assemble.by_family([small, small])


def test_shards_are_joined_in_the_plans_order(tmp_path: Path) -> None:
    whole = planned(shards=3)
    parts = [make(tmp_path / str(i), whole, shard=f"{i}/3") for i in (3, 1, 2)]
    groups = assemble.by_family(parts)
    one = assemble.joined(groups["sm8x"])
    assert list(one.paths) == [item.unit.object for item in whole.units]
    assert all(path.is_file() for path in one.paths.values())


@pytest.mark.parametrize(
    ("shards", "reason"),
    [
        (["1/3", "2/3"], "of 3 shards, 3/3 is missing"),
        (["1/2", "2/2", "2/2"], "shard 2/2 is there twice"),
        (["1/2", "2/3"], "the shards are of different builds"),
    ],
)
def test_incomplete_shards(tmp_path: Path, shards: list[str], reason: str) -> None:
    parts = [make(tmp_path / str(i), planned(shards=int(shard[-1])), shard=shard) for i, shard in enumerate(shards)]
    with pytest.raises(AssembleError, match=reason):
        assemble.by_family(parts)


def test_other_flags_than_this_checkout_plans(tmp_path: Path) -> None:
    part = make(tmp_path, planned())
    flags = {name: (*words, "-O0") if name == "prepare" else words for name, words in part.artifact.flags.items()}
    with pytest.raises(AssembleError, match="unit prepare: compiled with other flags"):
        assemble.plan_of(replace(part.artifact, flags=flags))
    assert assemble.plan_of(part.artifact).library == "flash_attn3_sm8x.so"
