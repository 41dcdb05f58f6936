"""`python -m ci plan`: print what would be built, do nothing."""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

from ci.build.ninja import planned_text
from ci.commands import common, options
from ci.plan import plan
from ci.plan.plan import BuildPlan, FamilyPlan
from ci.plan.profiles import find
from ci.plan.units import Unit
from ci.settings import Settings
from ci.sources.lock import read_lock
from ci.toolchain.installed import format_version
from flash_attn3_sm121.arch import KV8_SINCE
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
    session = common.begin(options.from_arguments(args))
    if args.ninja:
        sys.stdout.write(planned_text(session.plan, at_once=session.settings.at_once(session.plan.costs)))
    elif args.json:
        sys.stdout.write(plan.to_json(session.plan))
    else:
        title = f"sources {read_lock(session.request.lock).title}"
        show([title, *to_text(session.plan, session.settings).splitlines()])
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
    ]
    _, _, features = find(plan.profile).share(chosen.spec)
    if lost := sorted(features - chosen.features):
        lines.append(f"  left out    {' '.join(lost)}: in code for {'.'.join(map(str, KV8_SINCE))} and later only")
    lines.append("")
    rows = [
        (item.unit.file, f"{item.unit.kernels}", f"{item.cost.cpu_s:.0f}", f"{item.cost.rss_gb:.1f}")
        + (() if plan.shard.whole else (f"{item.shard}{' <' if item.shard == plan.shard.index else ''}",))
        for item in family.units
    ]
    head = ("unit", "kernels", "CPU s", "GB") + (() if plan.shard.whole else ("shard",))
    table = Table(head=head, rows=rows, right=frozenset({1, 2, 3}))
    lines += textwrap.indent(str(table), "  ").splitlines()
    groups: dict[tuple[str, ...], list[Unit]] = {}
    for item in family.units:
        groups.setdefault(item.flags, []).append(item.unit)
    told: set[str] = set()
    for words, units in groups.items():
        # A kind of file that had other flags above is named by its files.
        titles = dict.fromkeys(unit.name if unit.kind in told else unit.kind for unit in units)
        told |= {unit.kind for unit in units}
        body = textwrap.wrap(" ".join(words), 76, break_long_words=False, break_on_hyphens=False)
        lines += ["", *textwrap.wrap(f"  flags of {', '.join(titles)}", 80, subsequent_indent="    ")]
        lines += (f"    {line}" for line in body)
    return lines


def to_text(plan: BuildPlan, settings: Settings) -> str:
    """The whole plan, and how long a machine of these settings takes."""
    units, cost = plan.costs, plan.cost
    at_once = settings.at_once(units)
    lines = [
        f"profile {plan.profile}, platform {plan.platform.tag}, CUDA {format_version(plan.cuda)}, shard {plan.shard}"
    ]
    for family in plan.families:
        lines += ["", *_family(plan, family)]
    kernels = sum(item.unit.kernels for family in plan.families for item in family.of_shard(plan.shard))
    here = format_seconds(at_once.seconds(units))
    measured = sum(item.measured for family in plan.families for item in family.of_shard(plan.shard))
    lines += [
        "",
        f"total: {len(units)} units, {kernels} kernels, about {cost.cpu_s:.0f} CPU s, at most {cost.rss_gb:.1f} GB each"
        f"; {here} with {at_once.jobs} at once here"
        + (f" ({at_once.hungry} of those over {at_once.hungry_gb:g} GB)" if at_once.hungry < at_once.jobs else "")
        + ", less what is cached"
        + (f" ({measured} units as they were measured here)" if measured else ""),
    ]
    return "\n".join(lines) + "\n"
