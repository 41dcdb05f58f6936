"""`python -m ci measure`: CPU seconds and memory of our units against upstream's files with upstream's flags.

Everything is compiled anew, both sides of a group one after the other, one compiler at a time; nothing comes from, or
goes into, the object cache. A whole family takes hours: `--resume` goes on where an earlier run with the same inputs,
on the same kind of machine, was stopped.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ci import compile as compiling
from ci import machine, measure, options
from ci.children import Children
from ci.commands import common
from ci.inputs import Inputs
from ci.measure import Cost, Group, Result
from ci.narrate import Narrator
from ci.plan import PlannedUnit
from ci.workdir import WorkDir, workdir
from flash_attn3_sm121.errors import CompileError, UsageError

ROOT = Path(__file__).resolve().parents[2]


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_build_arguments(parser)
    parser.add_argument("--sample", type=int, metavar="N", help="measure N groups, spread over all of them")
    parser.add_argument("--all", action="store_true", help="measure every group (hours)")
    parser.add_argument("--only", action="append", default=[], metavar="GROUP", help="measure this group")
    parser.add_argument("--list", action="store_true", help="print the groups and stop")
    parser.add_argument("--resume", action="store_true", help="keep the groups that --output already holds")
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
    picked = found if args.list else chosen(found, args)
    if args.list:
        for group in found:
            print(f"{group.name:28} {len(group.ours)} of ours, {len(group.upstream)} of upstream's")
        return 0
    inputs = common.gather(session)
    facts: dict[str, Any] = {
        "pin": inputs.tree.lock.short,
        "cuda": ".".join(str(part) for part in inputs.toolchain.version),
        "archs": [target.name for target in session.plan.targets],
        "profile": session.plan.profile,
        "machine": f"{machine.cpu_name()}, {session.machine.cores} cores, {session.machine.platform}",
    }
    results = measure.carried(_earlier(args.output), facts=facts) if args.resume else []
    have = {result.name for result in results}
    facts |= {"date": datetime.date.today().isoformat(), "commit": machine.commit_of(ROOT)}
    for group in (group for group in picked if group.name not in have):
        results.append(_measure(group, session, inputs))
        document = measure.summary(results, of=len(found), facts=facts)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        narrate.note(f"{group.name}: {document['results'][-1]['ours_cpu_s']} CPU s against upstream's "
                     f"{document['results'][-1]['upstream_cpu_s']}")  # fmt: skip
    if not results:
        raise UsageError("nothing to measure")
    print(f"{args.output}: ours {document['ours_cpu_s']} CPU s, upstream {document['upstream_cpu_s']} CPU s, "
          f"ratio {document['ratio']}")  # fmt: skip
    return 0


def _measure(group: Group, session: common.Session, inputs: Inputs) -> Result:
    """Compile both sides of a group: ours from the edited tree, upstream's from the pristine one."""
    tools = inputs.toolchain
    with workdir(session.cache, sources=inputs.edited.folder, torch=inputs.torch_headers) as work:

        def compiled(file: str, argv: list[str]) -> Cost:
            session.narrate.command(argv)
            env = compiling.environment(os.environ, toolchain=tools, work=work, launcher=None)
            log = work.root / "keep" / "log"
            ended = Children().run(argv, cwd=work.root, env=env, log=log)
            if ended.code != 0:
                raise CompileError(
                    f"$ {' '.join(argv)}\nexit code {ended.code}\n{log.read_text(errors='replace')[-4000:]}"
                )
            return Cost(file=file, cpu_s=ended.cpu_s, wall_s=ended.wall_s, rss_gb=ended.rss_gb)

        ours = tuple(_ours(item, inputs, work, compiled) for item in group.ours)
        upstream = tuple(_upstream(file, inputs, work, compiled) for file in group.upstream)
    return Result(name=group.name, ours=ours, upstream=upstream)


def _earlier(path: Path) -> Mapping[str, Any]:
    """What an earlier run wrote; nothing where there was none."""
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


Compiled = Callable[[str, list[str]], Cost]


def _ours(item: PlannedUnit, inputs: Inputs, work: WorkDir, compiled: Compiled) -> Cost:
    work.write(item.unit)
    argv = compiling.command(item, toolchain=inputs.toolchain, work=work, launcher=None)
    cost = compiled(item.unit.file, argv)
    work.drop_intermediate(item.unit)
    return cost


def _upstream(file: str, inputs: Inputs, work: WorkDir, compiled: Compiled) -> Cost:
    hopper = inputs.tree.hopper
    includes = [f"-I{hopper}", f"-I{inputs.tree.cutlass_include}"]
    flags = [*measure.UPSTREAM_FLAGS, *measure.upstream_gencode(file)]
    argv = [str(inputs.toolchain.nvcc), "-ccbin", inputs.toolchain.cxx, *flags, *includes]
    return compiled(file, [*argv, "-c", str(hopper / file), "-o", str(work.root / "obj" / "upstream.o")])
