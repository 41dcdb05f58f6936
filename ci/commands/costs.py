"""`python -m ci measure --costs`: the plan's estimates beside what units have cost in the builds of this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from ci.cache.folders import cache_root
from ci.cache.objects import ObjectReport, ObjectStore
from ci.commands import options
from ci.commands.options import Request
from ci.plan import costs
from ci.plan.costs import Cost, Rate, Work, concurrency
from ci.plan.plan import FamilyPlan, plan_family
from ci.plan.units import Unit
from ci.settings import this_machine
from ci.toolchain.installed import planned_version
from flash_attn3_sm121.builds import PROFILES
from flash_attn3_sm121.console import Block, Table, format_bytes, format_seconds, show
from flash_attn3_sm121.errors import UsageError
from flash_attn3_sm121.files import put_file

LATER = ("softcap", "diff_headdim", "deterministic", "kv8", "fp8", "qv")  # features with files of their own
# The machines for which docs/building.md predicts times: their cores and gigabytes.
BUILDERS = {"2 cores, 24 GB": (2, 24.0), "20 cores, 119 GB": (20, 119.0)}


def show_costs(request: Request, *, write: bool) -> int:
    """Print how far the estimates are off, and what they come to; with `write`, what the measured units come to."""
    measured = ObjectStore(cache=cache_root()).measured()
    kinds = by_kind(costs.table(), measured)
    if write:
        if not measured:
            raise UsageError(f"no measured units in {cache_root()}", hint="make wheel compiles some")
        put_file(costs.FILE, costs.to_json(costs.refit(costs.table(), measured)))
        costs.table.cache_clear()
    reports = ObjectStore(cache=cache_root()).last_reports()
    show([kinds, "", predicted(request, reports), "", *by_feature(request, reports)])
    return 0


def by_kind(rates: Mapping[str, Rate], measured: Mapping[Work, Cost]) -> Table:
    """A row for each kind of file of which units were measured."""
    head = ("kind", "units", "CPU s, estimated", "measured", "ratio", "most GB, estimated", "measured")
    rows = []
    for kind, rate in rates.items():
        pairs = [
            (rate.cost(work.kernels, images=len(work.images)), cost)
            for work, cost in measured.items()
            if work.kind == kind
        ]
        if pairs:
            estimated, found = (costs.total(side) for side in zip(*pairs, strict=True))
            seconds = (f"{estimated.cpu_s:.0f}", f"{found.cpu_s:.0f}", f"{found.cpu_s / estimated.cpu_s:.2f}")
            rows.append((kind, str(len(pairs)), *seconds, f"{estimated.rss_gb:.1f}", f"{found.rss_gb:.1f}"))
    return Table(head=head, rows=rows, right=frozenset(range(1, len(head))))


def predicted(request: Request, reports: Mapping[Work, ObjectReport]) -> Table:
    """The time that each profile takes by the table of costs alone: with nothing cached, and without linking."""
    machine = this_machine()
    rows = []
    for profile in PROFILES:
        asked = dataclasses.replace(request, profile=profile)
        plan = options.plan_of(asked, machine=machine, cuda=planned_version(request.cuda_home))
        times = (
            concurrency(plan.costs, cores=cores, memory_gb=memory, wanted=None).seconds(plan.costs)
            for cores, memory in BUILDERS.values()
        )
        size = _size([(item.unit, family) for family in plan.families for item in family.units], reports)
        rows.append((profile, str(len(plan.costs)), f"{plan.cost.cpu_s:.0f}", *map(format_seconds, times), size))
    head = ("profile", "units", "CPU s", *BUILDERS, "objects")
    return Table(head=head, rows=rows, right=frozenset(range(1, len(head))))


def _size(units: Iterable[tuple[Unit, FamilyPlan]], reports: Mapping[Work, ObjectReport]) -> str:
    """The size of the kernels' objects on disk, and how many of them the cache lacks."""
    works = [costs.work_of(unit, images=family.images) for unit, family in units if unit.is_cuda]
    known = [reports[work].size for work in works if work in reports]
    missing = len(works) - len(known)
    return format_bytes(sum(known)) + (f", {missing} not compiled" if missing else "")


def by_feature(request: Request, reports: Mapping[Work, ObjectReport]) -> list[Block]:
    """A table for each family: features with kernels of their own, and what each adds to `full`."""
    machine, cuda = this_machine(), planned_version(request.cuda_home)
    asked = options.plan_of(dataclasses.replace(request, profile="full"), machine=machine, cuda=cuda)
    blocks: list[Block] = []
    for family in asked.families:
        later = [feature for feature in LATER if family.selection.has(feature)]
        rows, before = [], set[str]()
        for count in range(len(later) + 1):
            features = family.selection.features - {*later[count:]}
            plan = plan_family(dataclasses.replace(family.selection, features=features), family.targets)
            added = [item for item in plan.units if item.unit.name not in before]
            before = {item.unit.name for item in plan.units}
            kernels = sum(item.unit.kernels for item in added)
            cpu_s = sum(item.cost.cpu_s for item in added)
            name = later[count - 1] if count else "the rest"
            size = _size([(item.unit, plan) for item in added], reports)
            rows.append((name, str(len(added)), str(kernels), f"{cpu_s:.0f}", size))
        head = (f"feature of full, {family.family}", "units", "kernels", "CPU s", "objects")
        blocks.append(Table(head=head, rows=rows, right=frozenset(range(1, len(head)))))
    return blocks
