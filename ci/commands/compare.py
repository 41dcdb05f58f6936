"""`python -m ci compare`: what another CUDA version or another pin makes of the same units, side by side."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence

from ci.cache.objects import ObjectReport
from ci.commands import common, options
from ci.sources.lock import find_pin, read_lock
from ci.toolchain.installed import format_version
from ci.toolchain.pins import FILE, Pins, read_pins
from ci.toolchain.raising import raised
from flash_attn3_sm121.console import Table, format_bytes, show
from flash_attn3_sm121.errors import UsageError
from flash_attn3_sm121.files import put_file

EPILOG = """\
Everything that the plan needs is compiled both ways, as far as the cache lacks it. CPU seconds are those of the run
that compiled a unit: worth comparing where both were compiled on an otherwise idle machine. --source (FA3_SOURCE) is
a checkout of the other pin, where one is compared.
"""


def configure_compare(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    options.add_build_arguments(parser)
    other = parser.add_mutually_exclusive_group(required=True)
    other.add_argument("--to-cuda", metavar="X.Y", help="that CUDA version's packages; `newest` is the index's newest")
    other.add_argument("--to-pin", metavar="PIN", type=find_pin, help="that pin's sources")
    parser.add_argument("--write", action="store_true", help="pin --to-cuda, in ci/toolchain/toolchain.json")


def do_compare(args: argparse.Namespace) -> int:
    session = common.begin(options.from_arguments(args))
    narrate = session.settings.narrate
    if args.to_pin:
        if args.write:
            raise UsageError("--write is for --to-cuda", hint="CONTRIBUTING.md, Raise a pin")
        asked = session.request
        locks = (read_lock(asked.lock).short, read_lock(args.to_pin).short)
        before = compiled(dataclasses.replace(session, request=dataclasses.replace(asked, source=None)))
        after = compiled(dataclasses.replace(session, request=dataclasses.replace(asked, lock=args.to_pin)))
        show([compared(before, after, names=locks)])
        return 0
    text = _raised(None if args.to_cuda == "newest" else args.to_cuda)
    now, other = read_pins(), read_pins(text=text)
    names = (format_version(now.cuda), format_version(other.cuda))
    show([compared(compiled(session, now), compiled(session, other), names=names)])
    if args.write:
        put_file(FILE, text)
        narrate.note(f"wrote {FILE}: run `make test` and `make prove` with it before a release")
    else:
        narrate.note(f"{FILE.name} is unchanged: --write makes {names[1]} the pinned version")
    return 0


def _raised(asked: str | None) -> str:
    from ci.index.pages import wheels_of  # loads requests

    return raised(asked, wheels_of)


def compiled(session: common.Session, pins: Pins | None = None) -> dict[str, ObjectReport]:
    """The report of each of the plan's units by family and name, compiled by these packages where it has to be."""
    if pins is not None:
        plan = options.plan_of(session.request, machine=session.machine, cuda=pins.cuda)
        session = dataclasses.replace(session, plan=plan)
    builder = common.builder(session, common.gather_inputs(session, pins=pins))
    units = {str(family.family): builder.keys(family.of_shard(session.plan.shard)) for family in session.plan.families}
    with builder.folder() as work:
        made = builder.compile(units, work=work)
    return {f"{family} {report.unit}": report for family, reports in made.items() for report in reports}


def compared(before: Mapping[str, ObjectReport], after: Mapping[str, ObjectReport], *, names: tuple[str, str]) -> Table:
    """A row a unit, and one for all of them: each cell has the value of the one version and of the other."""
    rows = [_row(name, [before[name]], [after[name]]) for name in before if name in after]
    rows.append(_row("all", list(before.values()), list(after.values())))
    head = tuple(f"{word} {names[0]} -> {names[1]}" if word == "CPU s" else word for word in COLUMNS)
    return Table(head=("unit", *head), rows=rows, right=frozenset(range(1, len(COLUMNS))))


COLUMNS = ("CPU s", "object", "kernels", "most registers", "kernels that spill", "bytes spilled", "PTX")


def _row(name: str, before: Sequence[ObjectReport], after: Sequence[ObjectReport]) -> tuple[str, ...]:
    ptx, other = ([sorted(report.ptx.values()) for report in reports] for reports in (before, after))
    same = ("the same" if any(ptx) else "none") if ptx == other else "differs"
    return (name, *(_pair(*cells) for cells in zip(_values(before), _values(after), strict=True)), same)


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
