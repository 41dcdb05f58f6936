"""`python -m ci measure`: CPU seconds and memory of our units against upstream's files with upstream's flags.

Upstream's side is always compiled anew, from the untouched sources. Ours is too, unless `--built` takes what each unit
cost the build that made it on this machine (`make wheel`), which the object cache remembers. Every file is written down
when it is done. A whole family takes hours: `--resume` goes on where an earlier run with the same inputs, on the same
kind of machine, was stopped.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ci import ROOT, machine
from ci.build import compile as compiling
from ci.build.children import Children
from ci.build.executor import Executor, Job
from ci.build.family import Builder
from ci.build.inputs import Inputs
from ci.build.workdir import WorkDir, workdir
from ci.commands import common, options
from ci.console import Narrator
from ci.prove import measure
from ci.prove.measure import Cost, Group, Result, Task
from flash_attn3_sm121.errors import CompileError, UsageError

BUILT, ANEW = "the build that made them", "compiled for this measurement"


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_build_arguments(parser)
    parser.add_argument("--sample", type=int, metavar="N", help="measure N groups, spread over all of them")
    parser.add_argument("--all", action="store_true", help="measure every group (hours)")
    parser.add_argument("--only", action="append", default=[], metavar="GROUP", help="measure this group")
    parser.add_argument("--list", action="store_true", help="print the groups and stop")
    parser.add_argument("--built", action="store_true", help="our side: what the build in the object cache has cost")
    parser.add_argument("--resume", action="store_true", help="keep the files that --output already holds")
    parser.add_argument("--output", type=Path, default=Path("docs/results/build.json"))


def chosen(found: tuple[Group, ...], args: argparse.Namespace) -> tuple[Group, ...]:
    if args.only:
        known = {group.name: group for group in found}
        missing = [name for name in args.only if name not in known]
        if missing:
            raise UsageError(f"no group {', '.join(missing)}", hint=f"groups: {', '.join(known)}")
        return tuple(known[name] for name in args.only)
    if args.all:
        return found
    if not args.sample or args.sample < 1:
        raise UsageError(
            "what is to be measured? give --sample N, --only GROUP or --all", hint="--list shows the groups"
        )
    return measure.sample(found, args.sample)


def run(args: argparse.Namespace) -> int:
    narrate = Narrator()
    args.profile = args.profile or "full"
    session = common.begin(options.from_arguments(args), narrate)
    if len(session.plan.families) != 1:
        raise UsageError("measure one family at a time", hint="--archs 12.1")
    found = measure.groups(session.plan.families[0])
    if args.list:
        for group in found:
            print(f"{group.name:28} {len(group.ours)} of ours, {len(group.upstream)} of upstream's")
        return 0
    picked = chosen(found, args)
    inputs = common.gather(session)
    facts: dict[str, Any] = {
        "pin": inputs.tree.lock.short,
        "cuda": ".".join(str(part) for part in inputs.toolchain.version),
        "archs": [target.name for target in session.plan.targets],
        "profile": session.plan.profile,
        "machine": f"{machine.cpu_name()}, {session.machine.cores} cores, {session.machine.platform}",
    }
    earlier = _earlier(args.output) if args.resume else {}
    results = measure.carried(earlier, facts=facts)
    if args.built:
        _take_built(picked, results, common.builder(session, inputs))
    tasks = measure.tasks(picked, results)
    # Our side may be partly the one and partly the other, after going on with another choice.
    origins = [*earlier.get("ours_from", "").split("; "), BUILT if args.built else ""]
    origins += [ANEW] if any(task.ours for task in tasks) else []
    facts |= {
        "date": datetime.date.today().isoformat(),
        "commit": machine.commit_of(ROOT),
        "ours_from": "; ".join(dict.fromkeys(filter(None, origins))),
    }
    record = Record(output=args.output, found=found, results=results, facts=facts)
    record.write()
    with workdir(session.cache, sources=inputs.edited.folder, torch=inputs.torch_headers) as work:
        compiler = Compiler(inputs=inputs, work=work, narrate=narrate, record=record)
        jobs = [_job(task, compiler) for task in tasks]
        limit = session.request.jobs or session.machine.cores
        Executor(
            limit=limit, memory=machine.memory_probe, narrate=narrate, children=compiler.children, longest_first=False
        ).run(jobs)
    print(_told(record.document(), output=args.output))
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
    """Our side from the object cache: what the build that made each object has measured."""
    keyed = {group.name: builder.keys(group.ours) for group in picked}
    every = [unit for units in keyed.values() for unit in units]
    missing = [unit.planned.unit.name for unit in every if builder.store.find(unit.key) is None]
    if missing:
        named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UsageError(
            f"--built: {len(missing)} of {len(every)} units are not in the object cache: {named}",
            hint="build first, with the same PROFILE and ARCHS: make wheel PROFILE=full ARCHS=12.1",
        )
    for name, units in keyed.items():
        results.setdefault(name, Result()).ours = {
            unit.planned.unit.file: Cost(
                file=unit.planned.unit.file, cpu_s=report.cpu_s, wall_s=report.wall_s, rss_gb=report.rss_gb
            )
            for unit, report in zip(units, builder.reports(units), strict=True)
        }


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known so far, written down after every file: a measurement of hours may be stopped at any time."""

    output: Path
    found: tuple[Group, ...]
    results: dict[str, Result]
    facts: Mapping[str, Any]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def document(self) -> dict[str, Any]:
        return measure.summary(self.found, self.results, facts=self.facts)

    def add(self, task: Task, cost: Cost) -> None:
        with self._lock:
            result = self.results.setdefault(task.group.name, Result())
            (result.ours if task.ours else result.upstream)[task.file] = cost
            self.write()

    def write(self) -> None:
        """Whole or not at all: a kill between two bytes must not cost the hours before it."""
        self.output.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.output.with_name(f".{self.output.name}.new")
        fresh.write_text(json.dumps(self.document(), indent=1) + "\n", encoding="utf-8")
        fresh.replace(self.output)


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """Compiles files of both sides: ours from the edited tree, upstream's from the pristine one."""

    inputs: Inputs
    work: WorkDir
    narrate: Narrator
    record: Record
    children: Children = field(default_factory=Children)

    def run(self, task: Task) -> str:
        argv = self._ours(task) if task.ours else self._upstream(task)
        self.narrate.command(argv)
        env = compiling.environment(os.environ, toolchain=self.inputs.toolchain, work=self.work, launcher=None)
        log = self.work.root / "keep" / f"{Path(task.file).stem}.log"
        ended = self.children.run(argv, cwd=self.work.root, env=env, log=log)
        if ended.code != 0:
            raise CompileError(f"$ {' '.join(argv)}\nexit code {ended.code}\n{log.read_text(errors='replace')[-4000:]}")
        if task.ours:
            self.work.drop_intermediate(task.ours.unit)
        cost = Cost(file=task.file, cpu_s=ended.cpu_s, wall_s=ended.wall_s, rss_gb=ended.rss_gb)
        self.record.add(task, cost)
        return f"{task.file}: {cost.cpu_s:.0f} CPU s, {cost.rss_gb:.1f} GB"

    def _ours(self, task: Task) -> list[str]:
        assert task.ours
        self.work.write(task.ours.unit)
        return compiling.command(task.ours, toolchain=self.inputs.toolchain, work=self.work, launcher=None)

    def _upstream(self, task: Task) -> list[str]:
        hopper, tools = self.inputs.tree.hopper, self.inputs.toolchain
        flags = [*measure.UPSTREAM_FLAGS, *measure.upstream_gencode(task.file)]
        includes = [f"-I{hopper}", f"-I{self.inputs.tree.cutlass_include}"]
        made = self.work.root / "obj" / f"upstream_{Path(task.file).stem}.o"
        return [str(tools.nvcc), "-ccbin", tools.cxx, *flags, *includes, "-c", str(hopper / task.file), "-o", str(made)]


def _job(task: Task, compiler: Compiler) -> Job:
    cpu_s, need_gb = measure.estimate(task)
    name = task.file if task.ours else f"upstream's {Path(task.file).name}"
    return Job(name=name, cpu_s=cpu_s, need_gb=need_gb, action=lambda: compiler.run(task))


def _earlier(path: Path) -> Mapping[str, Any]:
    """What an earlier run wrote; nothing where there was none."""
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
