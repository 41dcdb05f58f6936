"""`python -m ci emulate WHEEL`: install an aarch64 wheel in an emulated aarch64 Python and use it there."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from ci.process import output_of
from ci.prove.emulated import probe
from ci.prove.emulated.root import EmulatedRoot, prepare
from ci.settings import Settings
from flash_attn3_sm121.console import Narrator
from flash_attn3_sm121.errors import UsageError, VerifyError

TOLERANCE = 2e-5  # fp32 on both sides, other summation order


def configure_emulate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "wheel", type=Path, nargs="?", help="an aarch64 wheel of ours; without it the root is only prepared"
    )
    parser.add_argument(
        "--native", action="store_true", help="no emulation: probe the wheel that is installed on this machine"
    )
    parser.add_argument(
        "--python", type=Path, default=Path(sys.executable), help="for --native: a Python that has it (default: this)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON on stdout")


def emulate(root: EmulatedRoot, wheel: Path) -> dict[str, Any]:
    """Install `wheel` with real pip in a fresh emulated environment and run the probe there."""
    if not wheel.is_file():
        raise UsageError(f"no such wheel: {wheel}", hint="make wheel PLATFORM=aarch64")
    with tempfile.TemporaryDirectory(prefix="fa3-emulated-") as folder:
        python = root.make_environment(Path(folder) / "venv")
        Narrator().note(f"installing {wheel.name} under emulation; then it is imported, loaded and called")
        root.pip_install(python, "--quiet", "--no-index", str(wheel))
        report: dict[str, Any] = json.loads(output_of(root.command(str(Path(probe.__file__)), python=python)))
    return report


def problems(report: dict[str, Any], *, machine: str = "aarch64") -> list[str]:
    """What is wrong with a report; empty when nothing is."""
    wrong = []
    if report["machine"] != machine:
        wrong.append(f"machine: expected {machine}, found {report['machine']}")
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


def do_emulate(args: argparse.Namespace) -> int:
    if args.native:
        if args.wheel is not None:
            raise UsageError("--native probes what is installed; it takes no wheel", hint="pip install WHEEL first")
        # The script's own folder is on its path, not this checkout: it sees the installed package.
        report = json.loads(output_of([str(args.python), str(Path(probe.__file__))]))
        return print_report(report, machine=platform.machine(), as_json=args.json)
    root = prepare(Settings())
    if args.wheel is None:
        print(root.folder)
        return 0
    return print_report(emulate(root, args.wheel), machine="aarch64", as_json=args.json)


def print_report(report: dict[str, Any], *, machine: str, as_json: bool) -> int:
    """Print a report. Raises VerifyError that lists what is wrong with it."""
    if as_json:
        json.dump(report, sys.stdout, indent=1)
        print()
    else:
        print(f"{report['wheel']} on {report['machine']}, Python {report['python']}, torch {report['torch']}")
        for family, found in report["families"].items():
            print(f"  {family}: {', '.join(found['images'])}; ops {', '.join(found['ops'])}")
        print(f"  fallback: {', '.join(f'{case} {error:.1e}' for case, error in report['fallback'].items())}")
        print(f"  get_kernel (kernels {report['get_kernel']['kernels']}): {report['get_kernel']['function']}")
    wrong = problems(report, machine=machine)
    if wrong:
        raise VerifyError(f"{report['wheel']} failed on {report['machine']}:\n  " + "\n  ".join(wrong))
    return 0
