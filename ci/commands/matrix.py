"""`python -m ci matrix`: the jobs of a workflow run, from the architecture table and the plan's costs."""

from __future__ import annotations

import argparse
import json
import sys

from ci.plan.archs import Platform
from ci.plan.matrix import Matrix, all_targets, document, make_matrix
from ci.toolchain.installed import planned_version
from flash_attn3_sm121.builds import DEFAULT, PROFILES
from flash_attn3_sm121.console import Block, Table, show

EPILOG = """--github prints `part={...}` lines for $GITHUB_OUTPUT; a workflow hands them to fromJSON()."""


def configure_matrix(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--profile", default=DEFAULT, help=f"one of {', '.join(PROFILES)}")
    parser.add_argument("--archs", default="", metavar="LIST", help="default: every architecture of the table")
    parser.add_argument(
        "--platform", action="append", type=Platform.parse, help="may be repeated (default: x86_64 and aarch64)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs")
    form.add_argument("--github", action="store_true", help="for $GITHUB_OUTPUT")


def do_matrix(args: argparse.Namespace) -> int:
    made = make_matrix(
        profile=args.profile,
        archs=args.archs or all_targets(),
        platforms=tuple(args.platform or Platform),
        cuda=planned_version(),
    )
    parts = document(made)
    if args.json:
        sys.stdout.write(json.dumps(parts, indent=1) + "\n")
    elif args.github:
        sys.stdout.write("".join(f"{part}={json.dumps(jobs, separators=(',', ':'))}\n" for part, jobs in parts.items()))
    else:
        show(to_blocks(made))
    return 0


def to_blocks(made: Matrix) -> list[Block]:
    """The jobs for people, and what they cost together."""
    head = ("build", "runner", "shard", "at once", "minutes", "limit")
    rows = [
        (job.name, job.runner, str(job.shard), str(job.jobs), str(job.estimate_min), str(job.timeout_min))
        for job in made.builds
    ]
    total = sum(job.estimate_min for job in made.builds) / 60
    return [
        Table(head=head, rows=rows, right=frozenset({2, 3, 4, 5})),
        "",
        "wheels: " + ", ".join(job.name for job in made.wheels),
        "tests:  " + ", ".join(f"{job.wheel} under {job.python}" for job in made.tests),
        f"{len(made.builds)} builds, about {total:.1f} runner hours where nothing is cached",
    ]
