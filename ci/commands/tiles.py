"""`python -m ci tiles`: each candidate for a tile compiled by itself, and its work counted. Predictions, no run."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ci.build.family import Builder
from ci.cache.objects import ObjectReport
from ci.commands import common, options
from ci.plan import costs
from ci.plan.plan import FamilyPlan, PlannedUnit
from ci.prove import tiles
from ci.prove.standin.document import Row
from ci.prove.tiles import Trial
from ci.prove.tiles_page import Search, page
from ci.verify import kernels
from ci.verify.reading import Disassembler
from flash_attn3_sm121.arch import Family
from flash_attn3_sm121.errors import UsageError

# The page's searches, the most telling first, each with the candidates that have been compiled for it.
SEARCHES: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("forward", 128, ("128 x 112, 8 warps, Q in registers", "128 x 48, 4 warps", "128 x 32, 4 warps")),
    ("forward", 64, ("128 x 64, 4 warps, Q in registers",)),
    ("forward", 96, (
        "128 x 96, 4 warps", "128 x 48, 4 warps, Q in registers", "128 x 128, 8 warps, Q in registers",
    )),
    ("forward", 192, ("128 x 96, 8 warps, Q in registers", "128 x 64, 8 warps, Q in registers")),
    ("forward", 256, ("64 x 48, 4 warps", "64 x 32, 4 warps")),
    ("backward", 128, ()),
    ("backward", 64, ()),
    ("backward", 96, (
        "64 x 96, warps 2/2/2, V in registers, 2 + 2 stages", "96 x 96, warps 2/2/2, V in registers, 1 + 1 stages",
    )),
    ("backward", 192, (
        "32 x 64, warps 2/2/1, V in registers, 2 + 2 stages", "64 x 48, warps 4/1/2, V in registers, 1 + 1 stages",
    )),
    ("backward", 256, ("64 x 32, warps 4/1/1, V in registers, 1 + 1 stages",)),
)  # fmt: skip
VARIANTS = ("", "causal")


def configure_tiles(parser: argparse.ArgumentParser) -> None:
    options.add_build_arguments(parser)
    parser.add_argument("--direction", choices=("forward", "backward"), help="one search alone, of --head-dim")
    parser.add_argument("--head-dim", type=int, choices=tiles.SPEC.head_dims, help="with --direction")
    parser.add_argument(
        "--variant", action="append", default=[], metavar="WORDS",
        help="causal, or paged,softcap, ...: a kernel of each candidate; may be repeated (default: no mask, causal)",
    )  # fmt: skip
    parser.add_argument("--tile", action="append", default=[], metavar="NAME", help="these candidates alone")
    parser.add_argument("--most", type=int, default=9, help="candidates beside the table's (default: %(default)s)")
    parser.add_argument("--write", type=Path, help="write the page there instead of to stdout")


def do_tiles(args: argparse.Namespace) -> int:
    if (args.direction is None) != (args.head_dim is None):
        raise UsageError("a search is of a direction and a head dim", hint="give both, or neither for the whole page")
    variants = tuple(frozenset(filter(None, words.split(","))) for words in args.variant or VARIANTS)
    if unknown := sorted(frozenset().union(*variants) - {*kernels.FORWARD_FLAGS, *kernels.BACKWARD_FLAGS}):
        known = dict.fromkeys((*kernels.FORWARD_FLAGS, *kernels.BACKWARD_FLAGS))
        raise UsageError(f"--variant: unknown word {unknown[0]!r}", hint=f"known: {', '.join(known)}")
    session = common.begin(options.from_arguments(args))
    family = next((item for item in session.plan.families if item.family is Family.SM8X), None)
    if family is None:
        raise UsageError("tiles are searched for 12.1", hint="add 12.1 to the architectures")
    inputs = common.gather_inputs(session)
    searcher = Searcher(builder=common.builder(session, inputs), family=family, variants=variants)
    asked = [(args.direction, args.head_dim, args.tile, args.most)] if args.direction else []
    asked = asked or [(direction, dim, names, len(names)) for direction, dim, names in SEARCHES]
    words = ["python -m ci tiles"] + [f"--profile {args.profile}"] * bool(args.profile)
    words += [f"--variant {each}" for each in args.variant]
    words += [f"--direction {args.direction} --head-dim {args.head_dim}"] if args.direction else []
    words += [f"--tile '{name}'" for name in args.tile]
    words += [f"--write {args.write}"] if args.write else []
    text = page(
        [searcher.search(*each) for each in asked],
        image=family.images[0], pin=inputs.tree.lock.short, cuda=inputs.toolchain.cuda, command=" ".join(words),
    )  # fmt: skip
    common.put_page(session, text, args.write)
    return 0


@dataclass(frozen=True, kw_only=True)
class Searcher:
    """Compiles candidates and reads their code. The cache keeps their objects: none is compiled twice."""

    builder: Builder
    family: FamilyPlan
    variants: Sequence[frozenset[str]]

    def search(self, direction: str, head_dim: int, only: Sequence[str], most: int) -> Search:
        """Compile the candidates. The tile of the table is read from the library's own object."""
        kind = "fwd" if direction == "forward" else "bwd"
        words = {
            "_".join(word for word in ("paged", "split", "softcap") if word in flags) or "plain"
            for flags in self.variants
        }
        ships = [
            item
            for item in self.family.units
            if (item.unit.kind, item.unit.head_dim, item.unit.e4m3) == (kind, head_dim, False)
            and words & {text.removesuffix(f" {tiles.DTYPE}") for text in item.unit.contents}
        ]
        shipped = [row for report in self._compiled(ships) for row in self._rows(report)]
        found = {trial for trial, _ in shipped}
        if len(found) != 1:
            raise UsageError(
                f"expected one tile of {direction} hd{head_dim}, found {', '.join(map(str, found)) or 'no kernels'}",
                hint="search one --variant at a time, of a --profile that has it",
            )
        (table,) = found
        trials, later, left = tiles.candidates(direction, head_dim, table, most=most, only=only)
        reports = self._compiled([self._planned(trial, ships[0]) for trial in trials])
        rows = [*shipped, *(row for report in reports for row in self._rows(report))]
        return Search(name=f"{direction} hd{head_dim} {tiles.DTYPE}", rows=tuple(rows), later=later, left=left)

    def _compiled(self, units: Sequence[PlannedUnit]) -> tuple[ObjectReport, ...]:
        name = str(self.family.family)
        with self.builder.folder() as work:
            return self.builder.compile({name: self.builder.keys(units)}, work=work)[name]

    def _planned(self, trial: Trial, like: PlannedUnit) -> PlannedUnit:
        """A candidate's file, with the flags of the library's files of its kind."""
        unit = tiles.unit(trial, self.variants)
        return replace(like, unit=unit, cost=costs.estimate(unit, family=self.family.family, images=1))

    def _rows(self, report: ObjectReport) -> Iterator[tuple[Trial, Row]]:
        """The kernels of the variants that are searched."""
        tool = Disassembler.of(self.builder.inputs.toolchain, self.builder.settings.narrate)
        listing = tool.listing("-sass", self.builder.store.object(report.key))
        image = self.family.images[0]
        code = {kernel: counts for (of, kernel), counts in kernels.parse_sass(listing).items() if of == image}
        for item in report.usage:
            variant = kernels.variant(item.kernel)
            if variant is None or item.image != image or variant.dtype != tiles.DTYPE or variant.head_dim_v:
                continue
            if variant.flags - {"packgqa"} in self.variants:
                trial, counted = tiles.of_kernel(item.kernel), code[item.kernel]
                row = Row(
                    kind=kernels.kind(item.kernel), variant=variant, tile=str(trial), warps=trial.warps,
                    registers=item.registers, spills=item.spill_stores,
                    smem=kernels.dynamic_smem(item.kernel) or trial.smem, tensor_core=counted.tensor_core, launched=0,
                    loop=kernels.loop_of(item.kernel, counted.loop),
                )  # fmt: skip
                yield trial, row
