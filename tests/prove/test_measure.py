"""Measuring against upstream: both sides of a group make the same variants, and sums are sums."""

from __future__ import annotations

from pathlib import Path

import pytest

from ci.plan import archs
from ci.plan.plan import plan_family
from ci.plan.profiles import find, select
from ci.prove import measure
from ci.prove.measure import Cost, Result
from ci.sources.lock import read_lock
from flash_attn3_sm121.arch import Family
from flash_attn3_sm121.errors import UsageError

FULL = plan_family(select(find("full"), Family.SM8X), archs.parse("12.1", cuda=(13, 0)))
GROUPS = measure.groups(FULL)


def test_every_unit_is_in_one_group_but_the_host_file_and_what_upstream_has_not() -> None:
    grouped = [item.unit.name for group in GROUPS for item in group.ours]
    names = {item.unit.name for item in FULL.units}
    kinds = ("api", "fwd_kv8_", "fwd_fp8_", "bwd_ordered_", "fwd_qv_", "fwd_hd64_1", "fwd_hd64_2", "fwd_hd192_128_")
    ours = {name for name in names if name.startswith(kinds)}
    assert len(ours) > 40 and sorted([*grouped, *ours]) == sorted(names)


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


def cost(file: str, cpu: float = 3, rss: float = 2) -> Cost:
    return Cost(file=file, cpu_s=cpu, wall_s=1, rss_gb=rss)


def group(name: str, ours: int, upstream: int) -> measure.Group:
    """A group of the given sizes with units of the real plan."""
    files = tuple(f"{name}{index}" for index in range(upstream))
    return measure.Group(name=name, kind="fwd", ours=FULL.units[:ours], upstream=files)


def measured(of: measure.Group, *, ours: float, upstream: list[float]) -> Result:
    """A result with every unit of ours at `ours` CPU seconds, and as many of upstream's files as are given."""
    files = [item.unit.file for item in of.ours]
    return Result(
        ours={file: cost(file, ours, 5 + index) for index, file in enumerate(files)},
        upstream={file: cost(file, cpu, 9) for file, cpu in zip(of.upstream, upstream, strict=False)},
    )


def test_sums() -> None:
    a, b = group("a", 2, 1), group("b", 1, 2)
    results = {"a": measured(a, ours=10, upstream=[40]), "b": measured(b, ours=20, upstream=[60, 60])}
    document = measure.summary([a, b], results, facts={"pin": "x"})
    sums = {"ours_cpu_s": 40, "upstream_cpu_s": 160, "ratio": 0.25}
    assert document["measured_groups"] == sums
    assert document["whole"] == {**sums, "upstream_files_counted_as_the_mean_of_their_group": 0}
    assert (document["ours_peak_rss_gb"], document["upstream_peak_rss_gb"]) == (6, 9)
    assert document["groups_measured"] == document["groups"] == 2


def test_a_file_that_was_not_measured_counts_as_its_groups_mean_and_the_document_says_how_many_do() -> None:
    a, b = group("a", 1, 1), group("b", 1, 4)
    results = {"a": measured(a, ours=10, upstream=[40]), "b": measured(b, ours=20, upstream=[50, 70])}
    document = measure.summary([a, b], results, facts={})
    assert document["measured_groups"] == {"ours_cpu_s": 10, "upstream_cpu_s": 40, "ratio": 0.25}
    assert document["whole"]["upstream_cpu_s"] == 40 + 4 * 60
    assert document["whole"]["upstream_files_counted_as_the_mean_of_their_group"] == 2
    assert (document["groups_measured"], document["upstream_files_measured"], document["upstream_files"]) == (1, 3, 5)


@pytest.mark.parametrize("lacking", ["ours", "upstream", "the group"])
def test_nothing_is_said_of_the_whole_where_a_side_of_a_group_is_unknown(lacking: str) -> None:
    a, b = group("a", 1, 1), group("b", 1, 2)
    results = {"a": measured(a, ours=1, upstream=[4]), "b": measured(b, ours=1, upstream=[4, 4])}
    if lacking == "the group":
        del results["b"]
    else:
        setattr(results["b"], lacking, {})
    assert measure.summary([a, b], results, facts={})["whole"] is None


def test_every_group_has_a_file_of_upstreams_before_any_has_all() -> None:
    order = measure.tasks(GROUPS, {})
    ours = [task for task in order if task.ours]
    assert order[: len(ours)] == ours and len(order) == len(ours) + 62
    first = [task.group.name for task in order[len(ours) : len(ours) + len(GROUPS)]]
    assert sorted(first) == sorted(found.name for found in GROUPS)
    half = [task.file for task in order[len(ours) : len(ours) + 32]]
    assert sum("bwd" in file and "softcap" in file for file in half) == 5, "both kinds of backward in the first half"


def test_only_what_is_not_known_yet_is_compiled() -> None:
    one = GROUPS[0]
    results = {one.name: measured(one, ours=1, upstream=[2])}
    assert [task.file for task in measure.tasks([one], results)] == list(one.upstream[1:])
    assert measure.estimate(measure.tasks([one], results)[0]) == measure.UPSTREAM_COST["fwd"]


def test_going_on_keeps_what_was_measured_from_the_same_inputs_only() -> None:
    a = group("a", 1, 2)
    before = {"a": measured(a, ours=1, upstream=[4])}
    facts = {"pin": "x", "machine": "one"}
    document = measure.summary([a], before, facts={**facts, "date": "then"})
    assert measure.carried(document, facts=facts) == before
    assert measure.carried({}, facts=facts) == {}
    with pytest.raises(UsageError, match="its machine is one, here it is two"):
        measure.carried(document, facts={**facts, "machine": "two"})
