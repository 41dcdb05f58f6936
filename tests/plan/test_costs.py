"""The table of costs: estimates follow what builds have measured, and a plan takes this machine's own where it can."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from ci.__main__ import main
from ci.cache.objects import KernelUsage, ObjectReport, ObjectStore
from ci.commands.costs import predicted
from ci.commands.options import Request
from ci.plan import archs, costs
from ci.plan.archs import Platform
from ci.plan.costs import Cost, Rate, Work, refit
from ci.plan.matrix import make_matrix
from ci.plan.plan import BuildPlan, Shard, make_plan, with_measured
from ci.plan.profiles import find
from ci.toolchain.installed import planned_version

DOCS = Path(__file__).resolve().parents[2] / "docs"
RATE = Rate(start_s=8.0, kernel_s=6.0, start_gb=3.0, kernel_gb=0.2, measured=9)
MMA, HOPPER = frozenset({"sm_121"}), frozenset({"sm_90a"})


def planned(shard: Shard) -> BuildPlan:
    targets = archs.parse("12.1", cuda=(13, 0))
    return make_plan(profile=find("nanochat"), targets=targets, platform=Platform.AARCH64, cuda=(13, 0), shard=shard)


def work(name: str, kernels: int, images: frozenset[str] = MMA) -> Work:
    return Work(unit=name, images=images, kernels=kernels)


def test_the_pages_have_what_the_estimates_come_to() -> None:
    building, workflows = (DOCS.joinpath(name).read_text(encoding="utf-8") for name in ("building.md", "ci.md"))
    for name, *figures, _ in predicted(Request(archs="12.1"), {}).rows:
        assert f"| `{name}` | {' | '.join(map(str, figures))} |" in building
    archs = re.search(r'matrix --profile full --archs "([^"]*)"', workflows)
    assert archs is not None
    made = make_matrix(profile="full", archs=archs[1], platforms=tuple(Platform), cuda=planned_version()).builds
    longest, hours = max(job.estimate_min for job in made), sum(job.estimate_min for job in made) / 60
    assert f"{len(made)} builds of at most {longest} minutes by estimate, {hours:.0f} runner hours" in workflows


def test_units_of_two_sizes_tell_the_start_from_the_rest() -> None:
    sizes = {work("fwd_a", 4): Cost(cpu_s=60.0, rss_gb=3.4), work("fwd_b", 18): Cost(cpu_s=200.0, rss_gb=7.0)}
    rate = refit({"fwd": RATE}, sizes)["fwd"]
    assert (rate.start_s, rate.kernel_s, rate.measured) == (20.0, 10.0, 2)
    assert rate.cost(18).rss_gb == 7.0 and rate.cost(4).rss_gb >= 3.4
    assert refit({"fwd": rate}, sizes)["fwd"] == rate


def test_units_of_one_size_scale_what_is_there() -> None:
    found = {work("fwd_a", 17): Cost(cpu_s=300.0, rss_gb=2.0), work("fwd_b", 18): Cost(cpu_s=152.0, rss_gb=3.3)}
    rate = refit({"fwd": RATE}, found)["fwd"]
    assert rate.cost(17).cpu_s + rate.cost(18).cpu_s == pytest.approx(452, abs=0.3)
    assert rate.start_s / rate.kernel_s == pytest.approx(8 / 6, abs=0.01)
    assert rate.cost(18).rss_gb == RATE.cost(18).rss_gb, "two units do not lower it"
    third = {work("fwd_c", 17): Cost(cpu_s=150.0, rss_gb=3.0)}
    assert refit({"fwd": RATE}, found | third)["fwd"].cost(18).rss_gb == 3.3


def test_images_add_seconds_and_no_memory() -> None:
    both = {work("fwd_a", 10, frozenset({"sm_120", "sm_121"})): Cost(cpu_s=256.0, rss_gb=5.0)}
    rate = refit({"fwd": RATE}, both)["fwd"]
    assert rate.cost(10, images=2) == Cost(cpu_s=256.0, rss_gb=5.0) and rate.cost(10).rss_gb == 5.0


def test_kinds_are_apart_and_one_without_units_keeps_its_row() -> None:
    rates = {"fwd": RATE, "fwd_sm90": RATE, "bwd": RATE}
    new = refit(
        rates, {work("fwd_a", 10, HOPPER): Cost(cpu_s=136.0, rss_gb=10.0), work("few_fwd", 1): Cost(cpu_s=1, rss_gb=1)}
    )
    assert new["fwd_sm90"].cost(10) == Cost(cpu_s=136.0, rss_gb=10.0)
    for kind in ("fwd", "bwd"):
        assert new[kind].cost(5) == RATE.cost(5) and new[kind].measured == 0


def test_the_repositorys_table_has_a_row_for_every_unit() -> None:
    assert costs.to_json(costs.table()) == costs.FILE.read_text()
    for name in ("9.0", "10.0", "12.1"):
        plan = make_plan(
            profile=find("full"), targets=archs.parse(name, cuda=(13, 0)), platform=Platform.AARCH64, cuda=(13, 0)
        )
        (family,) = plan.families
        for item in family.units:
            kind = costs.work_of(item.unit, images=family.images).kind if item.unit.is_cuda else item.unit.kind
            assert item.cost == costs.table()[kind].cost(item.unit.kernels) and item.cost.cpu_s > 0


def test_a_plan_takes_what_was_measured_and_keeps_its_shards() -> None:
    plan = planned(Shard(index=1, count=3))
    first = plan.families[0].units[0]
    known = {costs.work_of(first.unit, images=("sm_121",)): Cost(cpu_s=9999.0, rss_gb=1.5)}
    own = with_measured(plan, known)
    assert own.families[0].units[0].cost == Cost(cpu_s=9999.0, rss_gb=1.5)
    assert [item.measured for item in own.families[0].units] == [item == first for item in plan.families[0].units]
    assert [item.shard for item in own.families[0].units] == [item.shard for item in plan.families[0].units]
    other = with_measured(plan, {costs.work_of(first.unit, images=("sm_120",)): Cost(cpu_s=9999.0, rss_gb=1.5)})
    assert other == plan


def put(
    store: ObjectStore, name: str, *, key: str, cpu_s: float, ptx: bool = True, kernels: int = 1, at: int = 0
) -> None:
    """An object of that name in the store, last changed at a time of its own."""
    made = store.cache / "made.o"
    made.parent.mkdir(exist_ok=True)
    made.write_bytes(b"object")
    usage = KernelUsage(kernel="k", image="sm_121", registers=1, stack=0, spill_stores=0, spill_loads=0, static_smem=0)
    empty = replace(usage, kernel="_ZN3cub18CUB_300001_SM_12106detail11EmptyKernelIvEEvv")
    used = (*(usage,) * kernels, empty) if kernels else ()  # CUB's is counted by no plan
    report = ObjectReport(
        unit=name, key=key, sha256="", size=1, cpu_s=cpu_s, wall_s=1, rss_gb=2.04, usage=used,
        ptx={"a.ptx": ""} if ptx else {},
    )  # fmt: skip
    place = store.put(report, made=made, log="").with_name("report.json")
    os.utime(place, (at, at))


def test_the_cache_tells_what_each_unit_cost_last(tmp_path: Path) -> None:
    store = ObjectStore(cache=tmp_path / "cache")
    assert store.measured() == {}
    put(store, "fwd_a", key="a1", cpu_s=50.0, at=2000)
    put(store, "fwd_a", key="b2", cpu_s=40.0, at=1000)
    put(store, "fwd_b", key="c3", cpu_s=0.5, ptx=False)  # a compiler cache's
    put(store, "fwd_c", key="d4", cpu_s=30.0, kernels=0)  # compiled to PTX only
    assert store.measured() == {work("fwd_a", 1): Cost(cpu_s=50.0, rss_gb=2.0)}


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FA3_CACHE", str(tmp_path / "cache"))
    table = tmp_path / "costs.json"
    table.write_text(costs.FILE.read_text())
    monkeypatch.setattr(costs, "FILE", table)
    assert main(["measure", "--refit"]) == 2 and "no measured units" in capsys.readouterr().err
    whole = make_plan(
        profile=find("full"), targets=archs.parse("12.1", cuda=(13, 0)), platform=Platform.X86_64, cuda=(13, 0)
    )
    put(ObjectStore(cache=tmp_path / "cache"), "fwd_a", key="a1", cpu_s=500.0)
    try:
        outputs = []
        for option in ("--costs", "--refit", "--costs"):
            assert main(["measure", option, "--archs", "12.1"]) == 0
            outputs.append(capsys.readouterr().out)
    finally:
        costs.table.cache_clear()
    kinds, profiles, features = zip(*(output.split("\n\n") for output in outputs), strict=True)
    assert kinds[0] == kinds[1] and "1.00" not in kinds[0] and "1.00" in kinds[2]
    assert profiles[0] != profiles[1] == profiles[2], "what the profiles take follows the table"
    assert json.loads(table.read_text())["fwd"]["measured"] == 1
    rows = [line.split() for line in features[0].splitlines()[1:]]
    units = whole.families[0].units
    assert [row[0] for row in rows][-3:] == ["kv8", "fp8", "qv"] and "0 B, 20 not compiled" in features[0]
    added = [(int(row[-8]), int(row[-7])) for row in rows]  # units, kernels
    assert tuple(map(sum, zip(*added, strict=True))) == (len(units), sum(item.unit.kernels for item in units))
