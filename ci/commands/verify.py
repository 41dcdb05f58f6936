"""`python -m ci verify WHEEL...`: read built wheels and say whether they hold what they must."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ci.cache import executed
from ci.settings import Settings
from ci.toolchain.resolve import resolve
from ci.verify import report
from ci.verify.checks import passed
from ci.verify.reading import Disassembler, read_wheel
from ci.verify.wheelrules import wheel_checks
from flash_attn3_sm121.console import show
from flash_attn3_sm121.errors import UsageError, VerifyError


def configure_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("wheels", nargs="*", type=Path, metavar="WHEEL")
    parser.add_argument("--json", action="store_true", help="for programs: the verdict that a wheel carries, made anew")
    parser.add_argument("--quiet", action="store_true", help="no table of kernels")
    parser.add_argument("--cuda-home", type=Path, help="an installed CUDA toolkit instead of the pinned packages")


def do_verify(args: argparse.Namespace) -> int:
    if not args.wheels:
        raise UsageError("no wheel to verify", hint="make wheel builds one; then: python -m ci verify wheels/*.whl")
    if missing := [path for path in args.wheels if not path.is_file()]:
        raise UsageError(f"no such wheel: {missing[0]}", hint="ls wheels; make wheel builds one")
    settings = Settings()
    tool = Disassembler.of(resolve(settings, cuda_home=args.cuda_home), settings.narrate)
    good = True
    for path in args.wheels:
        reading = read_wheel(path, tool)
        checks = wheel_checks(reading)
        good &= passed(checks)
        if args.json:
            proxy = any(facts.proxy for facts in reading.facts)
            sys.stdout.write(report.to_json(report.document(reading.libraries, checks, proxy=proxy)))
        else:
            notes = [executed.line(reading.executed)]
            show(report.to_blocks(reading.name, reading.libraries, checks, kernels=not args.quiet, notes=notes))
    return 0 if good else VerifyError.exit_code
