"""docs/kernels-12.1*.md: what each compiled attention kernel takes, and what the host code asks for. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ci.cache.objects import KernelUsage
from ci.plan.profiles import Selection
from ci.prove.standin.library import Answer
from ci.verify import kernels
from flash_attn3_sm121.bench import bounds
from flash_attn3_sm121.bench.bounds import REGISTERS, WARPS, Bounds
from flash_attn3_sm121.errors import UsageError

# Per SM of compute capability 12.x: shared memory, and what the system takes of it a block.
SMEM, SMEM_RESERVED = 102400, 1024


@dataclass(frozen=True, kw_only=True)
class Row:
    """One attention kernel."""

    kind: str  # forward or backward
    variant: kernels.Variant
    tile: str
    warps: int
    registers: int
    spills: int
    smem: int
    tensor_core: int
    launched: int
    loop: Mapping[str, int] = field(default_factory=dict)  # the inner loop, as `kernels.loop_of` gives it
    executed: Mapping[str, Any] | None = None  # its row of executed.json

    @property
    def name(self) -> str:
        return f"{self.kind} {self.variant}"

    @property
    def group(self) -> str:
        return bounds.group(self.name)

    @property
    def blocks(self) -> int:
        """Blocks an SM holds, by arithmetic: registers are given out by 8 a thread, shared memory with its reserve."""
        by_registers = REGISTERS // (self.warps * 32 * (-(-self.registers // 8) * 8))
        by_smem = SMEM // (self.smem + SMEM_RESERVED)
        return min(by_registers, by_smem, WARPS // self.warps)

    @property
    def bounds(self) -> list[Bounds]:
        """The GPU's units set these bounds on the kernel. There are none where its inner loop was not found."""
        return [Bounds.of(self.loop, self.registers)] if self.loop else []

    def largest(self, figure: str) -> list[float]:
        """The largest error of outputs or gradients in the cases that launched it, if any did.

        Args:
            figure: "largest", the error itself, or "parts", as a part of what is allowed.
        """
        found = (self.executed or {}).get(figure, {})
        return [max(values)] if (values := [found[name] for name in ("out", "dq", "dk", "dv") if name in found]) else []


def rows(
    usage: Sequence[KernelUsage],
    code: Mapping[str, kernels.Code],
    answers: Sequence[Answer],
    executed: Mapping[str, Any] | None = None,
) -> tuple[Row, ...]:
    """Attention kernels that some call launched, by variant. `executed` is what `make prove` left of these objects."""
    ran = {row["kernel"]: row for row in executed["kernels"]} if executed else {}
    launches = [launch for answer in answers for launch in answer.launches]
    seen = {launch.kernel: launch for launch in launches}
    counts = {name: sum(launch.kernel == name for launch in launches) for name in seen}
    found = []
    for item in usage:
        variant = kernels.variant(item.kernel)
        if variant is None or item.kernel not in seen:
            continue
        launch = seen[item.kernel]
        found.append(
            Row(
                kind=kernels.kind(item.kernel),
                variant=variant,
                tile=f"{tile.block_m} x {tile.block_n}" if (tile := kernels.tile(item.kernel)) else "",
                warps=launch.block[0] // 32,
                registers=item.registers,
                spills=item.spill_stores,
                smem=launch.smem,
                tensor_core=code[item.kernel].tensor_core,
                launched=counts[item.kernel],
                loop=kernels.loop_of(item.kernel, code[item.kernel].loop),
                executed=ran.get(item.kernel),
            )
        )
    return tuple(sorted(found, key=lambda row: row.name))


def choice(words: Sequence[str], selection: Selection) -> Callable[[Row], bool]:
    """Which rows are wanted: of the named dtypes, and of the named head dims; all, where none of a sort is named."""
    dims = {f"hd{dim}": dim for dim in selection.head_dims}
    for word in words:
        if word not in dims and word not in selection.dtypes:
            raise UsageError(f"--only {word}: not in this profile", hint=f"{', '.join((*selection.dtypes, *dims))}")
    wanted_types = {word for word in words if word in selection.dtypes} or set(selection.dtypes)
    wanted_dims = {dims[word] for word in words if word in dims} or set(selection.head_dims)
    return lambda row: row.variant.dtype in wanted_types and row.variant.head_dim in wanted_dims


def unreached(usage: Sequence[KernelUsage], answers: Sequence[Answer]) -> tuple[str, ...]:
    """Attention kernels that no call launched: dead weight, or calls that are missing here."""
    seen = {launch.kernel for answer in answers for launch in answer.launches}
    names = (item.kernel for item in usage if kernels.kind(item.kernel) in ("forward", "backward"))
    return tuple(sorted(name for name in names if name not in seen))


@dataclass(frozen=True, kw_only=True)
class About:
    """The facts in a page's head."""

    profile: str
    image: str
    limit: int  # bytes of shared memory a block
    calls: int
    unreached: int  # attention kernels of the whole profile that no call launched
    pin: str
    cuda: str
    command: str  # that writes the page


def _spilling(found: Sequence[Row]) -> int:
    return sum(row.spills > 0 for row in found)


def _executed(found: Sequence[Row]) -> str:
    ran = [row.executed for row in found if row.executed]
    if not ran:
        return "No whole run of `make prove` over this PTX is on record: the columns on execution are empty."
    return f"""Executed in software (`make prove`, the same PTX): {len(ran)} of {len(found)}. `executed` is the part
of a kernel's PTX that some case reached. A case counts for each kernel that it launched. The largest error is that of
outputs, for a backward that of gradients; where values are large, so is their last bit. `of its limit`: the
largest error as a part of what rounding may cause there, which grows with the right value (`LIMITS` in
ci/prove/gb10/check.py). A case is wrong by a finding (a race, an access out of bounds, ...) or by a number."""


def _head(found: Sequence[Row], about: About) -> str:
    """It holds no date and no path: the same build gives the same text."""
    return f"""# Kernels for {about.image}, profile {about.profile}

Generated by `{about.command}`; do not edit.
FlashAttention {about.pin}, CUDA {about.cuda}. Registers and spills are ptxas' own words, tensor-core instructions are
counted in the disassembly, and shared memory and warps are what the host code asked for when {about.calls} calls were
driven through it with a stand-in CUDA runtime that posed as a GB10 (48 SMs, 24 MB of L2, {about.limit} bytes of shared
memory a block). Nothing here was timed: blocks an SM follow from arithmetic. `gqa`: for a backward with grouped heads.

{_executed(found)}

A block may ask for {about.limit} bytes of shared memory; the largest below asks for {max(row.smem for row in found)}.
Kernels that spill: {_spilling(found)} of {len(found)}. Built, but launched by no call: {about.unreached}.

"""


_SHARED = ("shared memory", "tensor-core instr.")
_EXECUTED = ("executed", "cases", "largest error", "of its limit", "wrong")


def _columns(*names: str) -> str:
    return _line(*names) + f"|{'---|' * len(names)}\n"


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |\n"


def _ran(found: Sequence[Row]) -> tuple[str, ...]:
    """The columns `_EXECUTED` of one kernel, or of several."""
    ran = [row.executed for row in found if row.executed]
    if not ran:
        return ("no", "", "", "", "")
    errors, parts = ([error for row in found for error in row.largest(figure)] for figure in ("largest", "parts"))
    part = min(100 * row["executed"] // max(1, row["instructions"]) for row in ran)
    covered = f"{part} %" if len(found) == 1 else f"{len(ran)}, {part} % or more"
    cases, wrong = sum(row["cases"] for row in ran), sum(row["wrong"] for row in ran)
    error, share = f"{max(errors):.1e}" if errors else "", f"{100 * max(parts):.0f} %" if parts else ""
    return (covered, str(cases), error, share, str(wrong))


def _work(groups: Sequence[tuple[str, Sequence[Row]]]) -> str:
    """What the units allow the kernels of each group, by the instructions of a tile."""
    head = _columns("kernels", "tile", *bounds.HEAD[:-1], "fp", "integer", bounds.HEAD[-1])
    body = ""
    for name, found in groups:
        counted = [row for row in found if row.bounds]
        if not counted:
            continue
        *clocks, share = bounds.cells([item for row in counted for item in row.bounds])
        issued = (bounds.span(row.loop[kind] * row.loop["warps"] for row in counted) for kind in ("fp", "integer"))
        body += _line(name, ", ".join(sorted({row.tile for row in counted})), *clocks, *issued, share)
    missing = sum(not row.bounds for _, found in groups for row in found)
    left = f"\nLeft out, as their inner loop was not found: {missing}.\n" if missing else ""
    return f"""
## Work of a tile

{bounds.notes(fp8=any("fp8" in row.variant.flags for _, found in groups for row in found))}
`fp` and `integer`: instructions of warps, a part of those issued. `python -m ci verify --json` has every kernel's.

{head}{body}{left}"""


def to_text(found: Sequence[Row], about: About) -> str:
    """The page with every kernel."""
    names = ("kernel", "tile", "warps", "registers", "spill bytes", *_SHARED, "blocks an SM", "calls", *_EXECUTED)
    body = "".join(
        _line(
            row.name, row.tile, row.warps, row.registers, row.spills, row.smem, row.tensor_core, row.blocks,
            row.launched, *_ran([row]),
        )
        for row in found
    )  # fmt: skip
    return _head(found, about) + _columns(*names) + body + _work([(row.name, [row]) for row in found])


def _order(row: Row) -> tuple[str, int, int, str, str, str]:
    variant = row.variant
    return row.kind, variant.head_dim, variant.head_dim_v, row.group, variant.dtype, row.tile


def to_summary(found: Sequence[Row], about: About) -> str:
    """The page with a line for each sort of kernels and dtype: the profile's whole breadth at a glance."""
    groups: dict[tuple[str, str], list[Row]] = {}
    tiles: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(found, key=_order):
        groups.setdefault((row.group, row.variant.dtype), []).append(row)
        tiles.setdefault((row.group, row.tile), []).append(row)
    names = ("kernels", "of them", "tiles", "registers", "that spill", "bytes at most", *_SHARED, "calls", *_EXECUTED)
    body = "".join(
        _line(
            f"{group} {dtype}", len(rows), ", ".join(sorted({row.tile for row in rows})),
            bounds.span(row.registers for row in rows), _spilling(rows), max(row.spills for row in rows),
            bounds.span(row.smem for row in rows), bounds.span(row.tensor_core for row in rows),
            sum(row.launched for row in rows), *_ran(rows),
        )
        for (group, dtype), rows in groups.items()
    )  # fmt: skip
    work = [(f"{group}, {len(rows)} of them", rows) for (group, _), rows in tiles.items()]
    return _head(found, about) + _columns(*names) + body + _work(work)
