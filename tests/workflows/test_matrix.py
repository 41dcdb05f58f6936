"""The matrix of hosted jobs: everything of the table once, within the runners' time and memory."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from ci.__main__ import main
from ci.plan import archs, matrix
from ci.plan.archs import Platform
from ci.plan.costs import concurrency
from ci.plan.matrix import RUNNERS, all_targets, document, make_matrix
from ci.plan.plan import Shard, make_plan
from ci.plan.profiles import find
from flash_attn3_sm121.arch import CAPABILITIES, Family
from flash_attn3_sm121.builds import PROFILES
from flash_attn3_sm121.errors import UsageError
from tests.workflows.files import ROOT

CUDA = (13, 0)
BOTH = tuple(Platform)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_unit_of_every_family_is_in_one_job(profile: str) -> None:
    made = make_matrix(profile=profile, archs=all_targets(), platforms=BOTH, cuda=CUDA)
    assert len({job.name for job in made.builds}) == len(made.builds)
    for platform in BOTH:
        jobs = [job for job in made.builds if job.platform == str(platform)]
        assert {job.family for job in jobs} == {str(row.family) for row in CAPABILITIES.values()}
        for family in {job.family for job in jobs}:
            mine = [job for job in jobs if job.family == family]
            count = Shard.parse(mine[0].shard).count
            assert [job.shard for job in mine] == [f"{index}/{count}" for index in range(1, count + 1)]
    named = [
        name for job in made.builds if job.platform == "aarch64" and job.shard[:2] == "1/" for name in job.archs.split()
    ]
    assert {name.rstrip("af") for name in named} == set(CAPABILITIES)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_job_fits_its_runner(profile: str) -> None:
    for job in make_matrix(profile=profile, archs=all_targets(), platforms=BOTH, cuda=CUDA).builds:
        runner = RUNNERS[Platform.parse(job.platform)]
        assert job.runner == runner.label
        plan = make_plan(
            profile=find(profile),
            targets=archs.parse(job.archs, cuda=CUDA),
            platform=Platform.parse(job.platform),
            cuda=CUDA,
            shard=Shard.parse(job.shard),
        )
        (family,) = plan.families
        costs = [item.cost for item in family.of_shard(plan.shard)]
        at_once = concurrency(costs, cores=runner.cores, memory_gb=runner.memory_gb, wanted=job.jobs)
        assert at_once.jobs == job.jobs <= runner.cores, "the build on that runner comes to the same"
        assert max(cost.rss_gb for cost in costs) < runner.memory_gb
        assert job.estimate_min <= matrix.SHARD_MIN and job.estimate_min < job.timeout_min <= runner.job_limit_min


def test_what_a_release_asks_for() -> None:
    """A slim wheel for each family and a fat one, for both CPUs; GitHub starts at most 256 jobs of a matrix."""
    asked = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]["wheels"]["with"]
    made = make_matrix(profile=asked["profile"], archs=asked["archs"], platforms=BOTH, cuda=CUDA)
    kinds = ("sm80", "sm8x", "sm90", "fat")
    assert {job.name for job in made.wheels} == {f"{kind}-{platform}" for kind in kinds for platform in BOTH}
    assert {job.archs for job in made.builds} == {"10.0", "12.0 12.1", "9.0a"} and len(made.builds) < 256


def test_slim_wheels_and_a_fat_one() -> None:
    made = make_matrix(profile="smoke", archs="9.0 12.1", platforms=(Platform.AARCH64,), cuda=CUDA)
    assert [job.name for job in made.wheels] == ["sm8x-aarch64", "sm90-aarch64", "fat-aarch64"]
    assert [job.pattern for job in made.wheels][-1] == "artifact-*-aarch64-*"
    assert {job.wheel for job in made.tests} == {"fat-aarch64"}
    alone = make_matrix(profile="smoke", archs="12.1", platforms=(Platform.AARCH64,), cuda=CUDA)
    assert [job.name for job in alone.wheels] == ["sm8x-aarch64"]
    assert {job.wheel for job in alone.tests} == {"sm8x-aarch64"}


def test_what_no_runner_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {platform: replace(runner, memory_gb=3.0) for platform, runner in RUNNERS.items()}
    monkeypatch.setattr(matrix, "RUNNERS", small)
    with pytest.raises(UsageError, match="a unit wants"):
        make_matrix(profile="full", archs="12.1", platforms=BOTH, cuda=CUDA)
    monkeypatch.undo()
    monkeypatch.setattr(matrix, "SHARD_MIN", 0.1)
    with pytest.raises(UsageError, match="one unit alone"):
        matrix.build_jobs(Family.SM8X, profile="smoke", archs="12.1", platform=Platform.X86_64, cuda=CUDA)


def test_forms_of_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["matrix", "--profile", "smoke", "--archs", "12.1", "--json"]) == 0
    as_json = json.loads(capsys.readouterr().out)
    assert main(["matrix", "--profile", "smoke", "--archs", "12.1", "--github"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.partition("=")[0]: json.loads(line.partition("=")[2]) for line in lines} == as_json
    assert as_json == json.loads(
        json.dumps(document(make_matrix(profile="smoke", archs="12.1", platforms=BOTH, cuda=CUDA)))
    )
    assert main(["matrix", "--profile", "smoke", "--platform", "arm64"]) == 0
    text = capsys.readouterr().out
    assert "sm8x-aarch64-1of1" in text and "x86_64" not in text
