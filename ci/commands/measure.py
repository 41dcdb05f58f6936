"""`python -m ci measure`: CPU seconds and memory of our units against upstream's files with upstream's flags.

Upstream's side is always compiled anew, from the untouched sources. Ours is too, unless `--built` takes what each unit
cost the build that made it on this machine (`make wheel`), which the object cache remembers. Every file is written down
when it is done. A whole family takes hours: `--resume` goes on where an earlier run with the same inputs, on the same
kind of machine, was stopped. `--costs` compiles nothing: it holds the plan's estimates against earlier builds.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci import ROOT
from ci.build.family import Builder, Inputs
from ci.build.ninja import Ninja, measuring, unit_edge
from ci.build.workdir import WorkFolder
from ci.commands import common, options
from ci.commands.costs import show_costs
from ci.plan.ninja import Edge
from ci.process import commit_of
from ci.prove import measure
from ci.prove.measure import Cost, Group, Result, Task
from flash_attn3_sm121.bench.machine import cpu_name
from flash_attn3_sm121.errors import UsageError
from flash_attn3_sm121.files import put_file

BUILT, ANEW = "the build that made them", "compiled for this measurement"


def configure_measure(parser: argparse.ArgumentParser) -> None:
    options.add_build_arguments(parser)
    parser.add_argument("--sample", type=int, metavar="N", help="measure N groups, spread over all of them")
    parser.add_argument("--all", action="store_true", help="measure every group (hours)")
    parser.add_argument("--only", action="append", default=[], metavar="GROUP", help="measure this group")
    parser.add_argument("--list", action="store_true", help="print the groups and stop")
    parser.add_argument("--built", action="store_true", help="our side: what the build in the object cache has cost")
    parser.add_argument("--resume", action="store_true", help="keep the files that --output already holds")
    parser.add_argument("--costs", action="store_true", help="the plan's estimates beside the builds of this machine")
    parser.add_argument("--refit", action="store_true", help="--costs, and write ci/plan/costs.json from them")
    parser.add_argument(
        "--output", type=Path, default=Path("docs/results/build.json"), help="the result (default: %(default)s)"
    )


def chosen(groups: tuple[Group, ...], args: argparse.Namespace) -> tuple[Group, ...]:
    if args.only:
        known = {group.name: group for group in groups}
        missing = [name for name in args.only if name not in known]
        if missing:
            raise UsageError(f"no group {', '.join(missing)}", hint=f"groups: {', '.join(known)}")
        return tuple(known[name] for name in args.only)
    if args.all:
        return groups
    if not args.sample or args.sample < 1:
        raise UsageError(
            "what is to be measured? give --sample N, --only GROUP or --all", hint="--list shows the groups"
        )
    return measure.sample(groups, args.sample)


def do_measure(args: argparse.Namespace) -> int:
    if args.costs or args.refit:
        return show_costs(options.from_arguments(args), write=args.refit)
    args.profile = args.profile or "full"
    session = common.begin(options.from_arguments(args))
    if len(session.plan.families) != 1:
        raise UsageError("measure one family at a time", hint="--archs 12.1")
    groups = measure.groups(session.plan.families[0])
    if args.list:
        for group in groups:
            print(f"{group.name:28} {len(group.ours)} of ours, {len(group.upstream)} of upstream's")
        return 0
    picked = chosen(groups, args)
    inputs = common.gather_inputs(session)
    builder = common.builder(session, inputs)
    facts: dict[str, Any] = {
        "pin": inputs.tree.lock.short,
        "cuda": inputs.toolchain.cuda,
        "archs": [target.name for target in session.plan.targets],
        "profile": session.plan.profile,
        "machine": f"{cpu_name()}, {session.machine.cores} cores, {session.machine.platform}",
    }
    earlier = json.loads(args.output.read_text(encoding="utf-8")) if args.resume and args.output.is_file() else {}
    results = measure.carried(earlier, facts=facts)
    if args.built:
        _take_built(picked, results, builder)
    tasks = measure.tasks(picked, results)
    # Our side may be partly the one and partly the other, after going on with another choice.
    origins = [*earlier.get("ours_from", "").split("; "), BUILT if args.built else ""]
    origins += [ANEW] if any(task.ours for task in tasks) else []
    facts |= {
        "date": datetime.date.today().isoformat(),
        "commit": commit_of(ROOT),
        "ours_from": "; ".join(dict.fromkeys(filter(None, origins))),
    }
    record = Record(output=args.output, groups=groups, results=results, facts=facts)
    record.write()
    with builder.folder() as work:
        _compile(tasks, session=session, inputs=inputs, work=work, record=record)
    print(_told(record.write(), output=args.output))
    return 0


def _told(document: Mapping[str, Any], *, output: Path) -> str:
    lines = [
        f"{output}: {document['upstream_files_measured']} of upstream's {document['upstream_files']} files measured"
    ]
    for name, key in (("groups measured whole", "measured_groups"), ("everything", "whole")):
        sums = document[key]
        if sums and sums["ratio"] is not None:
            ours, theirs = sums["ours_cpu_s"], sums["upstream_cpu_s"]
            lines.append(f"{name}: ours {ours:.0f} CPU s, upstream {theirs:.0f} CPU s, ratio {sums['ratio']}")
    counted = (document["whole"] or {}).get("upstream_files_counted_as_the_mean_of_their_group")
    if counted:
        lines.append(f"(in everything, {counted} of upstream's files count as the mean of their group's measured ones)")
    return "\n".join(lines)


def _take_built(picked: tuple[Group, ...], results: dict[str, Result], builder: Builder) -> None:
    """Take our units' costs from the object cache, as they were measured by the build that made each object."""
    keyed = {group.name: builder.keys(group.ours) for group in picked}
    every = [unit for units in keyed.values() for unit in units]
    reports = {unit.key: found[1] for unit in every if (found := builder.store.find(unit.key)) is not None}
    missing = [unit.planned.unit.name for unit in every if unit.key not in reports]
    if missing:
        named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UsageError(
            f"--built: {len(missing)} of {len(every)} units are not in the object cache: {named}",
            hint="build first, with the same PROFILE and ARCHS: make wheel PROFILE=full ARCHS=12.1",
        )
    for name, units in keyed.items():
        results.setdefault(name, Result()).ours = {
            unit.planned.unit.file: Cost(
                file=unit.planned.unit.file,
                cpu_s=reports[unit.key].cpu_s,
                wall_s=reports[unit.key].wall_s,
                rss_gb=reports[unit.key].rss_gb,
            )
            for unit in units
        }


@dataclass(frozen=True, kw_only=True)
class Record:
    """The results so far, written after every file, since a measurement of hours may be stopped at any time."""

    output: Path
    groups: tuple[Group, ...]
    results: dict[str, Result]
    facts: Mapping[str, Any]

    def add(self, task: Task, cost: Cost) -> None:
        result = self.results.setdefault(task.group.name, Result())
        (result.ours if task.ours else result.upstream)[task.file] = cost
        self.write()

    def write(self) -> dict[str, Any]:
        document = measure.summary(self.groups, self.results, facts=self.facts)
        put_file(self.output, json.dumps(document, indent=1) + "\n")
        return document


def _compile(
    tasks: Sequence[Task], *, session: common.Session, inputs: Inputs, work: WorkFolder, record: Record
) -> None:
    """Compile files of both sides, in their order: ours from the edited tree, upstream's from the pristine one."""
    settings = session.settings
    edges = [_edge(task, inputs, work) for task in tasks]
    by_name = {edge.name: (task, Path(edge.output)) for task, edge in zip(tasks, edges, strict=True)}

    def finished(name: str) -> None:
        task, written = by_name[name]
        record.add(task, Cost(file=task.file, **json.loads(written.read_text(encoding="utf-8"))))

    Ninja(root=work.root, narrate=settings.narrate).build(
        edges,
        measure=measuring(settings.cache, toolchain=inputs.toolchain, launcher=None),
        at_once=settings.at_once([edge.cost for edge in edges]),
        finished=finished,
    )


def _edge(task: Task, inputs: Inputs, work: WorkFolder) -> Edge:
    side, name = "ours" if task.ours else "upstream", Path(task.file).stem
    folder = work.family(side)
    written = str(folder.root / "cost" / f"{name}.json")
    if task.ours is not None:
        folder.write(task.ours.unit)
        return unit_edge(
            task.ours, folder=side, output=written, options=("--cost", written), toolchain=inputs.toolchain,
            launcher=None,
        )  # fmt: skip
    hopper, tools = inputs.tree.hopper, inputs.toolchain
    flags = [*measure.UPSTREAM_FLAGS, *measure.upstream_gencode(task.file)]
    flags += [f"-I{hopper}", f"-I{inputs.tree.cutlass_include}"]
    source = str(hopper / task.file)
    return Edge(
        name=f"upstream {name}",
        folder=side,
        source=source,
        output=written,
        options=("--unit", name, "--cost", written),
        command=(str(tools.nvcc), "-ccbin", tools.cxx, *flags, "-c", source, "-o", f"obj/{name}.o"),
        cost=measure.estimate(task),
    )
