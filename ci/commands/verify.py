"""`python -m ci verify WHEEL...`: read built wheels and say whether they hold what they must."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from ci.cache.folders import cache_root
from ci.console import Narrator
from ci.machine import gather
from ci.toolchain.resolve import resolve
from ci.verify import report, schemas
from ci.verify.checks import passed
from ci.verify.gather import Disassembler, WheelReading, read_wheel
from ci.verify.wheelrules import judge_wheel
from flash_attn3_sm121.call.schemas import PUBLIC
from flash_attn3_sm121.errors import UsageError, VerifyError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("wheels", nargs="*", type=Path, metavar="WHEEL")
    parser.add_argument("--json", action="store_true", help="for programs: the verdict that a wheel carries, made anew")
    parser.add_argument("--quiet", action="store_true", help="no table of kernels")
    parser.add_argument("--cuda-home", type=Path, help="an installed CUDA toolkit instead of the pinned packages")


def expected_schemas(reading: WheelReading) -> Mapping[str, str]:
    """Upstream's, as the wheel's provenance has them; they must be those of the Python side of this checkout too."""
    said = reading.provenance.get("op_schemas")
    ours = {name: schemas.normal(f"{name}{text}") for name, text in PUBLIC.items()}
    if said != ours:
        raise VerifyError(f"{reading.name}: its provenance has other op schemas than the Python interface: {said}")
    return ours


def run(args: argparse.Namespace) -> int:
    if not args.wheels:
        raise UsageError("no wheel to verify", hint="make wheel builds one; then: python -m ci verify wheels/*.whl")
    narrate = Narrator()
    host = str(gather().platform)
    toolchain = resolve(target=host, cuda_home=args.cuda_home, cache=cache_root(), narrate=narrate)
    tool = Disassembler(cuobjdump=toolchain.cuobjdump, nvdisasm=toolchain.nvdisasm)
    good = True
    for path in args.wheels:
        reading = read_wheel(path, tool=tool, narrate=narrate)
        checks = judge_wheel(reading, schemas=expected_schemas(reading))
        good &= passed(checks)
        if args.json:
            sys.stdout.write(report.to_json(report.document(reading.libraries, checks, facts=reading.facts)))
        else:
            sys.stdout.write(report.text(reading.name, reading.libraries, checks, kernels=not args.quiet))
    return 0 if good else VerifyError.exit_code
