"""`python -m ci emulate WHEEL`: install an aarch64 wheel in an emulated aarch64 Python and use it there."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from ci.cachedir import cache_root
from ci.emulated import probe
from ci.emulated.root import EmulatedRoot, prepare
from ci.emulated.root import run as run_command
from ci.narrate import Narrator
from flash_attn3_sm121.errors import UsageError, VerifyError

TOLERANCE = 2e-5  # fp32 on both sides, other summation order


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "wheel", type=Path, nargs="?", help="an aarch64 wheel of ours; without it the root is only prepared"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON on stdout")


def emulate(root: EmulatedRoot, wheel: Path, *, narrate: Narrator) -> dict[str, Any]:
    """Install `wheel` with real pip in a fresh emulated environment and run the probe there."""
    if not wheel.is_file():
        raise UsageError(f"no such wheel: {wheel}", hint="make wheel PLATFORM=aarch64")
    with tempfile.TemporaryDirectory(prefix="fa3-emulated-") as folder:
        python = root.make_environment(Path(folder) / "venv")
        narrate.note(f"installing {wheel.name} under emulation")
        root.pip_install(python, "--quiet", "--no-index", str(wheel))
        narrate.note("importing it, loading its libraries, running the fallback and get_kernel")
        report: dict[str, Any] = json.loads(run_command(root.command(str(Path(probe.__file__)), python=python)))
    return report


def judge(report: dict[str, Any]) -> list[str]:
    """What is wrong with a report; empty when nothing is."""
    wrong = []
    if report["machine"] != "aarch64":
        wrong.append(f"machine: expected aarch64, found {report['machine']}")
    if not report["families"]:
        wrong.append("families: expected at least one library, found none")
    for family, found in report["families"].items():
        if sorted(found["ops"]) != ["bwd", "fwd", "fwd_combine", "get_scheduler_metadata"]:
            wrong.append(f"{family}: expected four ops, found {sorted(found['ops'])}")
    for case, error in report["fallback"].items():
        if not error <= TOLERANCE:
            wrong.append(f"fallback {case}: expected an error of at most {TOLERANCE}, found {error}")
    if "flash_attn3_sm121" not in report["get_kernel"]["function"]:
        wrong.append(f"get_kernel: expected our module, found {report['get_kernel']['function']}")
    return wrong


def run(args: argparse.Namespace) -> int:
    narrate = Narrator()
    root = prepare(cache_root(), narrate=narrate)
    if args.wheel is None:
        print(root.folder)
        return 0
    report = emulate(root, args.wheel, narrate=narrate)
    if args.json:
        json.dump(report, sys.stdout, indent=1)
        print()
    else:
        print(f"{report['wheel']} on {report['machine']}, Python {report['python']}, torch {report['torch']}")
        for family, found in report["families"].items():
            print(f"  {family}: {', '.join(found['images'])}; ops {', '.join(found['ops'])}")
        print(f"  fallback: {', '.join(f'{case} {error:.1e}' for case, error in report['fallback'].items())}")
        print(f"  get_kernel (kernels {report['get_kernel']['kernels']}): {report['get_kernel']['function']}")
    wrong = judge(report)
    if wrong:
        raise VerifyError(f"{args.wheel.name} failed under emulation:\n  " + "\n  ".join(wrong))
    return 0
