"""`flash-attn3 doctor`: what this machine has, what each client gets, and the one command that mends each fault."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from flash_attn3_sm121.doctor.gather import machine
from flash_attn3_sm121.doctor.judge import judge
from flash_attn3_sm121.doctor.render import render

EPILOG = """It works without torch, without a GPU and with a broken library: those are what it is for.
Exit code 0: nothing is wrong. 1: at least one fault, each with the command that mends it."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--json", action="store_true", help="facts and findings as JSON on stdout")


def run(args: argparse.Namespace) -> int:
    if sys.stderr.isatty():
        print("looking at the driver, torch, libraries and clients ...", file=sys.stderr)
    facts = machine()
    findings = judge(facts)
    if args.json:
        json.dump({"machine": asdict(facts), "findings": [asdict(f) for f in findings]}, sys.stdout, indent=1)
        print()
    else:
        sys.stdout.write(render(facts, findings, colour=sys.stdout.isatty()))
    return 1 if any(finding.level == "fault" for finding in findings) else 0
