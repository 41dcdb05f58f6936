"""`python -m ci plan`: print what would be built, do nothing."""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

from ci.build.ninja import planned_text
from ci.commands import common, options
from ci.plan import plan
from ci.plan.costs import concurrency
from ci.plan.plan import BuildPlan, FamilyPlan
from ci.settings import this_machine
from ci.sources.lock import read_lock
from flash_attn3_sm121.console import Table, format_seconds, show


def configure_plan(parser: argparse.ArgumentParser) -> None:
    options.add_plan_arguments(parser)
    options.add_shard_argument(parser)
    parser.add_argument(
        "--cuda-home", type=Path, help="plan for an installed CUDA toolkit instead of the pinned packages"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs")
    form.add_argument("--ninja", action="store_true", help="the build.ninja that ninja would run, every command in it")


def do_plan(args: argparse.Namespace) -> int:
    request = options.from_arguments(args)
    machine = this_machine()
    built = common.planned(request, machine)
    if args.json:
        sys.stdout.write(plan.to_json(built))
    elif args.ninja:
        at_once = concurrency(built.costs, cores=machine.cores, memory_gb=machine.memory_gb, wanted=request.jobs)
        sys.stdout.write(planned_text(built, at_once=at_once))
    else:
        text = to_text(built, jobs=request.jobs, cores=machine.cores, memory_gb=machine.memory_gb)
        show([f"sources {read_lock(request.lock).title}", *text.splitlines()])
    return 0


def _family(plan: BuildPlan, family: FamilyPlan) -> list[str]:
    chosen = family.selection
    names = ", ".join(target.name for target in family.targets)
    lines = [
        f"family {family.family}: {chosen.spec.about}",
        f"  serves      {names}" + (" (PROXY: machine code of another device, never published)" if plan.proxy else ""),
        f"  machine code {' '.join((*family.images, *family.ptx))}",
        f"  library     {family.library}, ops torch.ops.{family.namespace}.*",
        f"  types       {' '.join(chosen.dtypes)}; head dims {' '.join(str(dim) for dim in chosen.head_dims)}",
        f"  features    {' '.join(sorted(chosen.features))}",
        "",
    ]
    rows = [
        (item.unit.file, f"{item.unit.kernels}", f"{item.cost.cpu_s:.0f}", f"{item.cost.rss_gb:.1f}")
        + (() if plan.shard.whole else (f"{item.shard}{' <' if item.shard == plan.shard.index else ''}",))
        for item in family.units
    ]
    head = ("unit", "kernels", "CPU s", "GB") + (() if plan.shard.whole else ("shard",))
    table = Table(head=head, rows=rows, right=frozenset({1, 2, 3}))
    lines += textwrap.indent(str(table), "  ").splitlines()
    groups: dict[tuple[str, ...], list[str]] = {}
    for item in family.units:
        groups.setdefault(item.flags, []).append(item.unit.kind)
    for words, kinds in groups.items():
        body = textwrap.wrap(" ".join(words), 76, break_long_words=False, break_on_hyphens=False)
        lines += ["", f"  flags of {', '.join(dict.fromkeys(kinds))}", *(f"    {line}" for line in body)]
    return lines


def to_text(plan: BuildPlan, *, jobs: int | None, cores: int, memory_gb: float) -> str:
    """The whole plan; `jobs` None means as many as cores and memory allow."""
    units = plan.costs
    at_once = concurrency(units, cores=cores, memory_gb=memory_gb, wanted=jobs)
    cuda = ".".join(str(part) for part in plan.cuda)
    lines = [f"profile {plan.profile}, platform {plan.platform.tag}, CUDA {cuda}, shard {plan.shard}", ""]
    for family in plan.families:
        lines += [*_family(plan, family), ""]
    cost = plan.cost
    kernels = sum(item.unit.kernels for family in plan.families for item in family.of_shard(plan.shard))
    here = format_seconds(at_once.seconds(units))
    measured = sum(item.measured for family in plan.families for item in family.of_shard(plan.shard))
    lines.append(
        f"total: {len(units)} units, {kernels} kernels, about {cost.cpu_s:.0f} CPU s, at most {cost.rss_gb:.1f} GB each"
        f"; {here} with {at_once.jobs} at once here, less what is cached"
        + (f" ({measured} units as they were measured here)" if measured else "")
    )
    return "\n".join(lines) + "\n"
