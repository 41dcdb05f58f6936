"""What the units of a GB10's SM allow a kernel, by the instructions of its inner loop. Predictions on paper, no run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flash_attn3_sm121.arch import CAPABILITIES
from flash_attn3_sm121.bench.devices import SHEETS
from flash_attn3_sm121.console import Block, Table, paragraph

GB10 = SHEETS["gb10"]
IMAGE = CAPABILITIES[GB10.capability].target
# An SM has four parts. In a clock an SM multiplies 1024 bf16 FLOPs, issues 4 instructions of warps, takes 16
# values through ex2, rcp or tanh (MUFU), and moves 128 bytes of shared memory.
GHZ, FLOP_A_CLOCK = 2.418, 1024
ISSUED, MUFU_LANES, REGISTERS, WARPS = 4, 16, 65536, 48
MMA_FLOP = 2 * 16 * 8 * 16  # of one tensor-core instruction; one on e4m3 has twice as many, in the same clocks
PEAK_TFLOPS = GB10.sms * GHZ * FLOP_A_CLOCK / 1e3


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Clocks of an SM that one tile of a kernel takes of each unit; `warps` are those that an SM's registers hold."""

    tensor: float
    issue: float
    mufu: float
    shared: float
    warps: int

    @classmethod
    def of(cls, loop: Mapping[str, int], registers: int) -> Bounds:
        """From the inner loop as `lib/verify.json` counts it, a warp."""
        warps = loop["warps"]
        return cls(
            tensor=loop["tensor"] * warps * MMA_FLOP / FLOP_A_CLOCK,
            issue=loop["instructions"] * warps / ISSUED,
            mufu=loop["mufu"] * warps * 32 / MUFU_LANES,
            shared=float(loop["shared"] * warps),
            # Registers are given out by eight a thread, to whole blocks.
            warps=min(REGISTERS // (-(-registers // 8) * 8 * 32) // warps * warps, WARPS),
        )

    @property
    def most(self) -> float:
        """The share of the peak if all units worked at the same time: the slowest one sets the pace."""
        return self.tensor / max(self.tensor, self.issue, self.mufu, self.shared)

    @property
    def least(self) -> float:
        """The share of the peak if each unit waited for the others. Latency may cost more than that."""
        return self.tensor / (self.tensor + self.issue + self.mufu + self.shared)


HEAD = ("tensor", "issue", "MUFU", "shared", "warps", "predicted share of the peak")


def span(values: Iterable[float]) -> str:
    """`1030` or `1030 to 1055`."""
    kept = sorted(values)
    low, high = f"{kept[0]:.0f}", f"{kept[-1]:.0f}"
    return low if low == high else f"{low} to {high}"


def cells(found: Iterable[Bounds]) -> tuple[str, ...]:
    """The columns of `HEAD` for a group of kernels."""
    kept = list(found)
    units = [[getattr(item, name) for item in kept] for name in ("tensor", "issue", "mufu", "shared", "warps")]
    share = f"{min(100 * item.least for item in kept):.0f} to {max(100 * item.most for item in kept):.0f} %"
    return (*map(span, units), share)


NOTES = f"""\
Clocks of an SM for a tile of queries and keys, by the machine code of the inner loop: {FLOP_A_CLOCK} bf16 FLOPs a clock
in the tensor cores, {ISSUED} instructions issued, {MUFU_LANES} values through ex2 and its like (MUFU), 128 bytes of
shared memory without conflicts; `warps`: as many as an SM's registers hold. The share of the peak is a prediction on
paper, never measured: from no work of the units overlapped to all of it. The peak is {PEAK_TFLOPS:.0f} TFLOP/s,
{GB10.sms} SMs at {GHZ} GHz. Latency, masks at the edges, the first and the last tile, and idle SMs are not in it."""
_FP8_NOTES = f"""
Of kernels with Q in e4m3 (`fp8`) it is a share of {2 * PEAK_TFLOPS:.0f} TFLOP/s: their tensor-core instructions have
twice the multiplications, in the same clocks."""


def notes(*, fp8: bool) -> str:
    """Return the text that explains the columns. `fp8`: the table has kernels with Q in e4m3."""
    return NOTES + _FP8_NOTES * fp8


def group(label: str) -> str:
    """The group that a kernel is counted in: its label's direction, head dims and words for another loop."""
    kind, dims, *words = label.split()
    return " ".join((kind, dims, *(word for word in words if word in ("deterministic", "kv8", "fp8", "qv"))))


def groups(kernels: Iterable[Mapping[str, Any]]) -> dict[str, list[Bounds]]:
    """The bounds of a library's attention kernels for a GB10, by `group`; from `lib/verify.json`."""
    found: dict[str, list[Bounds]] = {}
    for kernel in kernels:
        if kernel["image"] == IMAGE and kernel.get("loop"):
            found.setdefault(group(kernel["label"]), []).append(Bounds.of(kernel["loop"], kernel["registers"]))
    return dict(sorted(found.items()))


def blocks(folder: Path) -> list[Block]:
    """The table of an installed wheel's kernels, or a line that says why there is none."""
    report = folder / "verify.json"
    libraries = json.loads(report.read_text(encoding="utf-8"))["libraries"] if report.is_file() else {}
    found = groups(kernel for library in libraries.values() for kernel in library["kernels"])
    if not found:
        return paragraph(
            "The kernels' own bounds are left out: no wheel with counted kernels for 12.1 is installed (make wheel)."
        )
    rows = [(name, str(len(items)), *cells(items)) for name, items in found.items()]
    return [
        Table(head=("kernels", "of them", *HEAD), rows=rows, spare=(1, 5, 6, 4, 3)),
        "",
        *paragraph(notes(fp8=any("fp8" in name.split() for name in found))),
    ]
