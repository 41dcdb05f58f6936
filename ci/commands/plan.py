"""`python -m ci plan`: print what would be built, do nothing."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ci.commands import options
from ci.machine import this_machine
from ci.plan import cuda, plan
from ci.plan import text as plantext
from flash_attn3_sm121.console import show


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_plan_arguments(parser)
    parser.add_argument(
        "--cuda-home", type=Path, help="plan for an installed CUDA toolkit instead of the pinned packages"
    )
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    request = options.from_arguments(args)
    machine = this_machine()
    built = options.plan_of(request, machine=machine, cuda=cuda.planned(args.cuda_home))
    if args.json:
        sys.stdout.write(plan.to_json(built))
    else:
        text = plantext.to_text(built, jobs=request.jobs, cores=machine.cores, memory_gb=machine.memory_gb)
        show(text.splitlines())
    return 0
