"""`python -m ci build`: families (or a shard of them) to artifacts, which any machine can assemble."""

from __future__ import annotations

import argparse
from pathlib import Path

from ci.build import artifact
from ci.commands import common, options
from flash_attn3_sm121.console import Narrator


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_build_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path("build/artifacts"), help="folder for the artifacts")


def run(args: argparse.Namespace) -> int:
    session = common.begin(options.from_arguments(args), Narrator())
    builder = common.builder(session, common.gather_inputs(session))
    with builder.folder() as work:
        for part in builder.build(session.plan, work=work):
            print(artifact.write(args.output, part))
    return 0
