"""`python -m ci reproduce`: is the wheel the same, bit for bit, when it is built with cold caches in another folder?

Sources and toolchain come from the cache (they are proven by hash); every object is compiled anew. Two builds are
compared, or one with a wheel that is there already (--against), whose every differing file is named.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import tempfile
import zipfile
from pathlib import Path

from ci.build.family import Builder, Inputs
from ci.cache.folders import file_sha256
from ci.commands import common, options
from flash_attn3_sm121.console import Narrator
from flash_attn3_sm121.errors import VerifyError


def configure_reproduce(parser: argparse.ArgumentParser) -> None:
    options.add_build_arguments(parser)
    parser.add_argument("--against", type=Path, metavar="WHEEL", help="compare one build with this wheel")


def do_reproduce(args: argparse.Namespace) -> int:
    session = common.begin(options.from_arguments(args), Narrator())
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
