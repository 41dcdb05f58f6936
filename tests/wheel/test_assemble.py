"""Artifacts and assembly: what belongs together is joined, what does not is refused by name."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest

from ci.build.artifact import MANIFEST, Artifact, Identity, Part, read, write
from ci.cache.objects import ObjectReport
from ci.plan import archs as archlist
from ci.plan.archs import Platform
from ci.plan.plan import Shard, make_plan
from ci.plan.profiles import find
from ci.wheel.assemble import by_family, check_together, joined, plan_of
from flash_attn3_sm121.errors import AssembleError
from tests.wheels import ROOT, BuiltWheel

CUDA = (13, 0)
IDENTITY = Identity(
    pin="3effce8",
    sources="s",
    edits="e",
    cuda="13.0",
    toolchain="t",
    cxx="12",
    torch_headers="h",
    profile="smoke",
    platform="aarch64",
    version="1",
    proxy="",
)
Maker = Callable[..., Path]


def _report(unit: str, data: bytes) -> ObjectReport:
    sha = hashlib.sha256(data).hexdigest()
    return ObjectReport(unit=unit, key=f"k-{unit}", sha256=sha, size=len(data), cpu_s=1, wall_s=1, rss_gb=1, usage=())


def read_parts(folders: Sequence[Path]) -> list[Part]:
    return [read(folder) for folder in folders]


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    """Write an artifact as `ci build` would, with made-up objects."""

    def maker(archs: str = "12.1", *, shard: str = "1/1", into: str = "a", **changes: str) -> Path:
        plan = make_plan(
            profile=find("smoke"),
            targets=archlist.parse(archs, cuda=CUDA),
            platform=Platform.AARCH64,
            cuda=CUDA,
            shard=Shard.parse(shard),
        )
        (family,) = plan.families
        units = family.of_shard(plan.shard)
        scratch = tmp_path / "objects"
        scratch.mkdir(exist_ok=True)
        names = [f"{item.unit.name}.o" for item in units] if shard != "1/1" else [family.library]
        for name in names:
            (scratch / name).write_bytes(name.encode())
        artifact = Artifact(
            kind="library" if shard == "1/1" else "objects",
            family=str(family.family),
            identity=replace(IDENTITY, **changes),
            targets=tuple(target.name for target in family.targets),
            flags={item.unit.name: item.flags for item in units},
            shard=shard,
            files={name: hashlib.sha256(name.encode()).hexdigest() for name in names},
            reports=tuple(_report(item.unit.name, f"{item.unit.name}.o".encode()) for item in units),
            kernels={},
        )
        return write(tmp_path / into, Part(artifact=artifact, paths={name: scratch / name for name in names}))

    return maker


def test_an_artifact_is_read_as_it_was_written(make: Maker) -> None:
    first, second = make(shard="1/2"), make(shard="2/2")
    assert first.name == "sm8x-aarch64-smoke-1of2" and make().name == "sm8x-aarch64-smoke"
    assert read(first).artifact.shard == "1/2"
    assert read(second).artifact.reports[0].unit in read(second).artifact.flags
    assert json.loads(read(first).artifact.to_json()) == json.loads((first / MANIFEST).read_text(encoding="utf-8"))
    assert make(shard="1/2") == first and not list(first.parent.glob(".*"))  # replaced, nothing left beside


def _spoil(folder: Path, old: str, new: str) -> None:
    path = folder / MANIFEST
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: next(f.glob("*.so")).write_bytes(b"x"), "expected sha256"),
        (lambda f: next(f.glob("*.so")).unlink(), "is missing"),
        (lambda f: (f / MANIFEST).unlink(), "no artifact in"),
        (lambda f: (f / MANIFEST).write_text("{", encoding="utf-8"), "not JSON"),
        (lambda f: _spoil(f, '"schema": 3', '"schema": 1'), "of schema 3"),
        (lambda f: _spoil(f, '"kind"', '"sort"'), "expected the fields"),
    ],
)
def test_damaged_artifacts(make: Maker, damage: Callable[[Path], object], words: str) -> None:
    folder = make()
    damage(folder)
    with pytest.raises(AssembleError, match=words):
        read(folder)


@pytest.mark.parametrize("field", [item.name for item in fields(Identity)])
def test_every_difference_is_named(make: Maker, field: str) -> None:
    parts = read_parts([make(), make("9.0", into="b", **{field: "other"})])
    with pytest.raises(AssembleError, match=rf"do not belong together(?s:.*)\n  {field}: .* / other"):
        check_together(parts)
    with pytest.raises(AssembleError, match="no artifacts"):
        check_together([])


def test_families_of_one_making_go_together_in_the_tables_order(make: Maker) -> None:
    parts = read_parts([make("9.0"), make("12.1", shard="2/2"), make("10.0"), make("12.1", shard="1/2")])
    assert check_together(parts) == IDENTITY
    groups = by_family(parts)
    assert list(groups) == ["sm80", "sm8x", "sm90"] and len(groups["sm8x"]) == 2


@pytest.mark.parametrize(
    ("shards", "words"),
    [
        (("1/3", "3/3"), "of 3 shards, 2/3 is missing"),
        (("1/2", "2/3"), "the shards are of different builds: 1/2 of 12.1, 2/3 of 12.1"),
        (("1/2", "2/2", "2/2"), "shard 2/2 is there twice: .*b.*, .*c"),
        (("1/1", "1/2"), "family sm8x is there 2 times"),
        (("1/1", "1/1"), "family sm8x is there 2 times"),
    ],
)
def test_shards_that_do_not_make_a_whole(make: Maker, shards: tuple[str, ...], words: str) -> None:
    folders = [make(shard=shard, into=into) for shard, into in zip(shards, "abc", strict=False)]
    with pytest.raises(AssembleError, match=words):
        by_family(read_parts(folders))


def test_shards_of_other_architectures(make: Maker) -> None:
    folders = [make(shard="1/2"), make("12.0 12.1", shard="2/2", into="b")]
    with pytest.raises(AssembleError, match=r"different builds: 1/2 of 12\.1, 2/2 of 12\.0 12\.1"):
        by_family(read_parts(folders))


def test_joined_shards_are_the_whole(make: Maker) -> None:
    """Every unit, its flags and its report, in the plan's order: as if one machine had made it."""
    whole = read(make()).artifact
    for folders in ([make(shard="1/2"), make(shard="2/2")], [make(shard="2/2"), make(shard="1/2")]):
        one = joined(read_parts(folders))
        assert dict(one.artifact.flags) == dict(whole.flags) and one.artifact.reports == whole.reports
        assert one.plan is not None and list(one.paths) == [item.unit.object for item in one.plan.units]
        assert all(path.read_bytes() == name.encode() for name, path in one.paths.items())


def test_other_flags_are_refused_whichever_shard_has_them(make: Maker) -> None:
    parts = read_parts([make(shard="1/2"), make(shard="2/2")])
    for index, part in enumerate(parts):
        unit, words = next(iter(part.artifact.flags.items()))
        changed = replace(part.artifact, flags={**part.artifact.flags, unit: (*words, "-DEXTRA")})
        spoilt = [*parts[:index], replace(part, artifact=changed), *parts[index + 1 :]]
        with pytest.raises(AssembleError, match=rf"unit {unit}: compiled with other flags(?s:.*)-DEXTRA"):
            joined(spoilt)
    with pytest.raises(AssembleError, match="no such unit"):
        plan_of(replace(parts[0].artifact, flags={"stranger": ("-O3",)}))


def test_a_shard_without_an_object_it_should_have(make: Maker) -> None:
    parts = read_parts([make(shard="1/2"), make(shard="2/2")])
    name = next(iter(parts[1].artifact.files))
    parts[1] = replace(parts[1], paths={key: path for key, path in parts[1].paths.items() if key != name})
    with pytest.raises(AssembleError, match=f"objects missing \\['{name.removesuffix('.o')}'\\]"):
        joined(parts)


@pytest.mark.nvcc
@pytest.mark.slow
def test_a_wheel_of_shards_is_the_wheel(smoke_wheel: BuiltWheel, tmp_path: Path) -> None:
    """Two shards built apart and assembled: bit for bit what one machine makes. The objects come from the cache."""

    def ci(*words: str | Path) -> str:
        command = [sys.executable, "-m", "ci", *map(str, words)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    options = ("--profile", "smoke", "--archs", "12.1", "--output", tmp_path / "parts")
    folders = [ci("build", *options, "--shard", shard).strip() for shard in ("2/2", "1/2")]
    said = ci("assemble", *folders, "--output", tmp_path / "wheels", "--no-publish")
    (made,) = (tmp_path / "wheels").glob("*.whl")
    assert smoke_wheel.sha256 in said and hashlib.sha256(made.read_bytes()).hexdigest() == smoke_wheel.sha256
    with zipfile.ZipFile(made) as archive:
        story = json.loads(archive.read("flash_attn3_sm121/lib/provenance.json"))
    assert len(story["families"]["sm8x"]["units"]) == 3
