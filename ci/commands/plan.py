"""`python -m ci plan`: print what would be built, do nothing."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ci.build.ninja import planned_text
from ci.commands import options
from ci.machine import this_machine
from ci.plan import cuda, plan
from ci.plan import text as plantext
from ci.plan.ninja import concurrency
from flash_attn3_sm121.console import show


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_plan_arguments(parser)
    parser.add_argument(
        "--cuda-home", type=Path, help="plan for an installed CUDA toolkit instead of the pinned packages"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs")
    form.add_argument("--ninja", action="store_true", help="the build.ninja that ninja would run, every command in it")


def run(args: argparse.Namespace) -> int:
    request = options.from_arguments(args)
    machine = this_machine()
    built = options.plan_of(request, machine=machine, cuda=cuda.planned(args.cuda_home))
    if args.json:
        sys.stdout.write(plan.to_json(built))
    elif args.ninja:
        at_once = concurrency(built.costs, cores=machine.cores, memory_gb=machine.memory_gb, wanted=request.jobs)
        sys.stdout.write(planned_text(built, at_once=at_once))
    else:
        text = plantext.to_text(built, jobs=request.jobs, cores=machine.cores, memory_gb=machine.memory_gb)
        show(text.splitlines())
    return 0
