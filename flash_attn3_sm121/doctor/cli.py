"""The command line of `flash-attn3 doctor`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from flash_attn3_sm121.console import Narrator, show
from flash_attn3_sm121.doctor.collect import machine
from flash_attn3_sm121.doctor.diagnose import diagnose
from flash_attn3_sm121.doctor.render import report

EPILOG = """It works without torch, without a GPU and with a broken library.
Exit code 0: nothing is wrong. 1: there is at least one fault; each names the command that fixes it."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--json", action="store_true", help="facts and findings as JSON on stdout")


def run(args: argparse.Namespace) -> int:
    Narrator().note("looking at the driver, torch, libraries and clients ...")
    facts = machine()
    findings = diagnose(facts)
    if args.json:
        json.dump({"machine": asdict(facts), "findings": [asdict(f) for f in findings]}, sys.stdout, indent=1)
        print()
    else:
        show(report(facts, findings))
    return 1 if any(finding.level == "fault" for finding in findings) else 0
