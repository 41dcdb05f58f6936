"""`python -m ci verify WHEEL...`: read built wheels and say whether they hold what they must.

`python -m ci reproduce`: is the wheel the same, bit for bit, when it is built with cold caches in another folder?

Sources and toolchain come from the cache (they are proven by hash); every object is compiled anew. Two builds are
compared, or one with a wheel that is there already (--against), whose every differing file is named.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ci.build.family import Builder, Inputs
from ci.cache.folders import file_sha256
from ci.commands import common, options
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
    _refuse_missing(args.wheels)
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
            notes = [report.proof_line(reading.executed)]
            show(report.to_blocks(reading.name, reading.libraries, checks, kernels=not args.quiet, notes=notes))
    return 0 if good else VerifyError.exit_code


def _refuse_missing(wheels: Sequence[Path]) -> None:
    """Raises UsageError where a wheel is not there, before anything is fetched or compiled."""
    if missing := [path for path in wheels if not path.is_file()]:
        raise UsageError(f"no such wheel: {missing[0]}", hint="ls wheels; make wheel builds one")


def configure_reproduce(parser: argparse.ArgumentParser) -> None:
    options.add_build_arguments(parser)
    parser.add_argument("--against", type=Path, metavar="WHEEL", help="compare one build with this wheel")


def do_reproduce(args: argparse.Namespace) -> int:
    _refuse_missing([args.against] if args.against else [])
    session = common.begin(options.from_arguments(args))
    inputs = common.gather_inputs(session)
    with tempfile.TemporaryDirectory(prefix="fa3-reproduce-") as scratch:
        places = [Path(scratch) / "one"] + ([] if args.against else [Path(scratch) / "another" / "and deeper"])
        made = [build_cold(session, inputs, place) for place in places]
        wheels = [args.against, *made] if args.against else made
        different = differing(*wheels)
        if different:
            raise VerifyError(
                f"{wheels[0]} and {wheels[1]} differ in: {', '.join(different)}",
                hint="the build depends on something that is no input of it",
            )
        print(f"{made[0].name}\nsha256  {file_sha256(made[0])}\nthe same in {len(wheels)} builds")
    return 0


def build_cold(session: common.Session, inputs: Inputs, place: Path) -> Path:
    """A wheel from a copy of the edited sources, with an empty object cache, all below `place`."""
    sources = place / "sources"
    shutil.copytree(inputs.edited.folder, sources)
    moved = dataclasses.replace(inputs, edited=dataclasses.replace(inputs.edited, folder=sources))
    builder = Builder(inputs=moved, settings=dataclasses.replace(session.settings, cache=place / "cache"))
    return common.build_wheel(builder, session.plan, output=place / "wheels").path


def differing(first: Path, second: Path) -> list[str]:
    """Names of the files that differ; the archives themselves where only their framing does."""
    with zipfile.ZipFile(first) as left, zipfile.ZipFile(second) as right:
        names = sorted(set(left.namelist()) ^ set(right.namelist()))
        names += [n for n in left.namelist() if n in right.namelist() and left.read(n) != right.read(n)]
    if not names and (first.name != second.name or file_sha256(first) != file_sha256(second)):
        names = ["the archive itself"]
    return names
