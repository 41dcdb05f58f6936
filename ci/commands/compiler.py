"""`python -m ci compiler`: raise the pinned CUDA version, and see what another one makes of the same kernels."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ci.cache.objects import ObjectReport
from ci.commands import common, options
from ci.toolchain.installed import format_version
from ci.toolchain.pins import FILE, Pins, read_pins
from ci.toolchain.raising import raised
from flash_attn3_sm121.console import Narrator, Table, format_bytes, show
from flash_attn3_sm121.files import put_file

EPILOG = """\
Everything that the plan needs is compiled with both versions, as far as the cache lacks it. CPU seconds are those of
the run that compiled a unit: worth comparing where both were compiled on an otherwise idle machine.
"""


def configure_compiler(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    options.add_build_arguments(parser)
    parser.add_argument("--cuda", metavar="X.Y", help="the other version (default: the newest on the package index)")
    parser.add_argument("--write", action="store_true", help="make it the pinned one: ci/toolchain/toolchain.json")


def do_compiler(args: argparse.Namespace) -> int:
    from ci.index.pages import wheels_of  # loads requests

    narrate = Narrator()
    session = common.begin(options.from_arguments(args), narrate)
    text = raised(args.cuda, wheels_of)
    with tempfile.TemporaryDirectory(prefix="fa3-compiler-") as scratch:
        # The lock names its manifest, which lies beside it.
        place = Path(scratch) / FILE.name
        for manifest in FILE.parent.glob("*.tree"):
            (place.parent / manifest.name).write_bytes(manifest.read_bytes())
        place.write_text(text, encoding="utf-8")
        now, other = read_pins(), read_pins(place)
    reports = [compiled(session, pins) for pins in (now, other)]
    show([compared(*reports, names=(format_version(now.cuda), format_version(other.cuda)))])
    if args.write:
        put_file(FILE, text)
        narrate.note(f"wrote {FILE}: run `make test` and `make prove` with it before a release")
    else:
        sys.stdout.write(f"{FILE.name} is unchanged: --write makes {format_version(other.cuda)} the pinned version\n")
    return 0


def compiled(session: common.Session, pins: Pins) -> dict[str, ObjectReport]:
    """The report of each of the plan's units by family and name, compiled by these packages where it has to be."""
    plan = options.plan_of(session.request, machine=session.machine, cuda=pins.cuda)
    builder = common.builder(session, common.gather_inputs(dataclasses.replace(session, plan=plan), pins=pins))
    units = {str(family.family): builder.keys(family.of_shard(plan.shard)) for family in plan.families}
    with builder.folder() as work:
        made = builder.compile(units, work=work)
    return {f"{family} {item.name}": item.report for family, items in made.items() for item in items}


def compared(before: Mapping[str, ObjectReport], after: Mapping[str, ObjectReport], *, names: tuple[str, str]) -> Table:
    """A row a unit, and one for all of them: each cell has the value of the one version and of the other."""
    rows = [_row(name, [before[name]], [after[name]]) for name in before if name in after]
    rows.append(_row("all", list(before.values()), list(after.values())))
    head = tuple(f"{word} {names[0]} -> {names[1]}" if word == "CPU s" else word for word in COLUMNS)
    return Table(head=("unit", *head), rows=rows, right=frozenset(range(1, len(COLUMNS) + 1)))


COLUMNS = ("CPU s", "object", "kernels", "most registers", "kernels that spill", "bytes spilled")


def _row(name: str, before: Sequence[ObjectReport], after: Sequence[ObjectReport]) -> tuple[str, ...]:
    return (name, *(_pair(*cells) for cells in zip(_values(before), _values(after), strict=True)))


def _pair(one: str, other: str) -> str:
    return one if one == other else f"{one} -> {other}"


def _values(reports: Sequence[ObjectReport]) -> tuple[str, ...]:
    usage = [kernel for report in reports for kernel in report.usage]
    return (
        f"{sum(report.cpu_s for report in reports):.0f}",
        format_bytes(sum(report.size for report in reports)),
        str(len(usage)),
        str(max((kernel.registers for kernel in usage), default=0)),
        str(sum(kernel.spill_stores > 0 for kernel in usage)),
        str(sum(kernel.spill_stores for kernel in usage)),
    )
