"""Measuring against upstream: both sides of a group make the same variants, and sums are sums."""

from __future__ import annotations

from pathlib import Path

import pytest

from ci import archlist, measure
from ci.lock import read_lock
from ci.measure import Cost, Result
from ci.plan import plan_family
from ci.profiles import find, select
from flash_attn3_sm121.arch import Family
from flash_attn3_sm121.errors import UsageError

FULL = plan_family(select(find("full"), Family.SM8X), archlist.parse("12.1", cuda=(13, 0)))
GROUPS = measure.groups(FULL)


def test_every_unit_but_the_host_file_is_in_one_group() -> None:
    grouped = [item.unit.name for group in GROUPS for item in group.ours]
    assert sorted(grouped) == sorted(item.unit.name for item in FULL.units if item.unit.kind != "api")


def test_upstreams_files_exist_in_the_pin_and_are_all_there() -> None:
    pinned = {Path(entry.path).as_posix() for entry in read_lock().hopper.files}
    named = [file for group in GROUPS for file in group.upstream]
    assert len(set(named)) == len(named) == 62 and set(named) <= pinned


@pytest.mark.parametrize("count", [1, 2, 4, 8, 27])
def test_a_sample_is_spread_and_always_the_same(count: int) -> None:
    picked = measure.sample(GROUPS, count)
    assert picked == measure.sample(GROUPS, count) and len(set(g.name for g in picked)) == len(picked) <= count
    if count >= 4:
        assert {"fwd", "bwd"} <= {group.kind for group in picked}


def test_upstreams_architectures() -> None:
    assert measure.upstream_gencode("x_sm80.cu")[1] == "arch=compute_80,code=sm_80"
    assert measure.upstream_gencode("flash_fwd_combine.cu")[1] == "arch=compute_90a,code=sm_90a"


def test_sums() -> None:
    def cost(cpu: float, rss: float) -> Cost:
        return Cost(file="f", cpu_s=cpu, wall_s=1, rss_gb=rss)

    results = [
        Result(name="a", ours=(cost(10, 5), cost(20, 6)), upstream=(cost(40, 9),)),
        Result(name="b", ours=(cost(10, 7),), upstream=(cost(60, 8), cost(60, 8))),
    ]
    document = measure.summary(results, of=27, facts={"pin": "x"})
    assert (document["ours_cpu_s"], document["upstream_cpu_s"], document["ratio"]) == (40, 160, 0.25)
    assert (document["ours_peak_rss_gb"], document["upstream_peak_rss_gb"]) == (7, 9)
    assert document["groups_measured"] == 2 and document["groups"] == 27


def test_going_on_keeps_what_was_measured_from_the_same_inputs_only() -> None:
    cost = Cost(file="f", cpu_s=3, wall_s=1, rss_gb=2)
    before = [Result(name="a", ours=(cost,), upstream=(cost, cost))]
    facts = {"pin": "x", "machine": "one"}
    document = measure.summary(before, of=27, facts={**facts, "date": "then"})
    assert measure.carried(document, facts=facts) == before
    assert measure.carried({}, facts=facts) == []
    with pytest.raises(UsageError, match="its machine is one, here it is two"):
        measure.carried(document, facts={**facts, "machine": "two"})
