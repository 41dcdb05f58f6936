"""`python -m ci build`: families (or a shard of them) to artifacts, which any machine can assemble."""

from __future__ import annotations

import argparse
from pathlib import Path

from ci.commands import common, options
from ci.console import Narrator


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_build_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path("build/artifacts"), help="folder for the artifacts")


def run(args: argparse.Namespace) -> int:
    session = common.begin(options.from_arguments(args), Narrator())
    inputs = common.gather(session)
    for folder in common.builder(session, inputs).build(session.plan, output=args.output):
        print(folder)
    return 0
