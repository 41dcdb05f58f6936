"""The inner loop of an attention kernel, counted in its machine code. Pure.

One iteration multiplies one tile of queries with one of keys. A kernel has several such loops, with a mask and without:
the shortest of them is where long sequences spend their time.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations

TENSOR = frozenset({"HMMA", "HGMMA", "QMMA", "QGMMA", "OMMA", "UTCHMMA"})
_FLOAT = frozenset({"FADD", "FMUL", "FFMA", "FMNMX", "FMNMX3", "FSEL", "FSETP", "F2FP", "HADD2", "HMUL2", "HFMA2"})
_INTEGER = re.compile(r"I(?!2F)|LOP3|SHF|LEA|SEL|PRMT|VI|MOV|POPC|BREV|R2P|P2R")
_BYTES = re.compile(r"\.(32|64|128)\b")
_MATRICES = re.compile(r"\.MT?88(?:\.(\d))?")
WAVE = 128  # bytes that shared memory moves in a clock
_LANES = 32
Span = tuple[int, int]  # the first and the last address


@dataclass(frozen=True)
class Instruction:
    """One instruction; `target` is where a branch with an address goes."""

    at: int
    op: str
    modifiers: str
    target: int | None = None


def _waves(item: Instruction) -> int:
    """Clocks that a warp's instruction takes of shared memory, without conflicts between banks."""
    if item.op == "LDSM":
        found = _MATRICES.search(item.modifiers)
        return int(found[1] or 1) if found else 1
    if item.op in ("LDS", "STS", "LDGSTS"):
        found = _BYTES.search(item.modifiers)
        return _LANES * (int(found[1]) // 8 if found else 4) // WAVE
    return int(item.op in ("SHFL", "ATOMS"))


def _count(body: Sequence[Instruction]) -> dict[str, int]:
    ops = [item.op for item in body]
    return {
        "instructions": len(ops),  # with NOPs: between tensor-core instructions they are issued too
        "tensor": sum(op in TENSOR for op in ops),
        "mufu": ops.count("MUFU"),
        "fp": sum(op in _FLOAT for op in ops),
        "integer": sum(_INTEGER.match(op) is not None for op in ops),
        "shared": sum(map(_waves, body)),
        "spills": ops.count("LDL") + ops.count("STL"),
    }


def inner_loop(code: Sequence[Instruction]) -> dict[str, int]:
    """What one warp issues in one iteration, by class; empty where no loop holds a tensor-core instruction.

    A loop is what lies between a branch backwards and its target. A tensor-core instruction belongs to the smallest
    loop around it; of the loops with the most of them, the one with the fewest instructions counts. Where the compiler
    enters a loop in its middle, two such spans overlap and are one loop.
    """
    spans = {(item.target, item.at) for item in code if item.target is not None and item.target < item.at}
    tensor = [item.at for item in code if item.op in TENSOR]
    held = _held(_joined(set(_held(spans, tensor))), tensor)
    if not held:
        return {}
    most = max(held.values())
    bodies = ([item for item in code if span[0] <= item.at <= span[1]] for span, n in held.items() if n == most)
    return min(map(_count, bodies), key=lambda counts: counts["instructions"])


def _held(spans: Collection[Span], places: Sequence[int]) -> dict[Span, int]:
    """How many of the places each span holds that no smaller span around them holds; spans without any are left out."""
    found: dict[Span, int] = {}
    for at in places:
        around = [span for span in spans if span[0] <= at <= span[1]]
        if around:
            smallest = min(around, key=lambda span: span[1] - span[0])
            found[smallest] = found.get(smallest, 0) + 1
    return found


def _joined(spans: set[Span]) -> set[Span]:
    """Spans that overlap, and do not lie in each other, become one."""
    for a, b in combinations(sorted(spans), 2):
        if a[0] < b[0] <= a[1] < b[1]:
            return _joined(spans - {a, b} | {(a[0], b[1])})
    return spans
