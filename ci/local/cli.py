"""`python -m ci local WORKFLOW`: run a workflow's own steps here, job by job, and say what was not."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from ci.console import Narrator
from ci.local.runner import LocalRun
from ci.local.workflow import read_workflow
from flash_attn3_sm121.errors import CompileError, UsageError

EPILOG = """Each job gets a fresh copy of the working tree and a fresh virtual environment; the content cache is this
machine's own. Actions that only talk to GitHub (attestations, pages) are listed as not done."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("workflow", type=Path, help="a file in .github/workflows")
    parser.add_argument("--job", action="append", default=[], help="only this job; may be repeated")
    parser.add_argument("--input", action="append", default=[], metavar="NAME=VALUE", help="an input of the workflow")
    parser.add_argument(
        "--cross", action="append", default=[], metavar="JOB", help="run it whatever CPU its runner would have"
    )
    parser.add_argument("--list", action="store_true", help="print the jobs and stop")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave workspaces and artifacts in this new folder")


def run(args: argparse.Namespace) -> int:
    pairs = dict(_pair(text) for text in args.input)
    workflow = read_workflow(args.workflow, pairs)
    strangers = sorted({*args.job, *args.cross} - set(workflow.jobs))
    if strangers:
        raise UsageError(f"{args.workflow}: no job {', '.join(strangers)}", hint=f"it has {', '.join(workflow.jobs)}")
    if args.list:
        print("\n".join(workflow.jobs))
        return 0
    top = subprocess.run(["git", "rev-parse", "--show-toplevel"], check=True, capture_output=True, text=True)
    if args.keep is not None:
        args.keep.mkdir(parents=True)
    folder = args.keep.absolute() if args.keep else Path(tempfile.mkdtemp(prefix="fa3-ci-local-"))
    made = LocalRun(
        workflow=workflow,
        tree=Path(top.stdout.strip()),
        folder=folder,
        narrate=Narrator(),
        jobs=frozenset(args.job),
        cross=frozenset(args.cross),
    )
    try:
        good = made.run()
    finally:
        if args.keep is None:
            shutil.rmtree(folder)
    print(made.summary(), end="")
    return 0 if good else CompileError.exit_code


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--input: expected NAME=VALUE, found {text!r}")
    return name, value
