"""A verdict as a document and as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ci.verify.checks import Check, passed
from ci.verify.kernels import Kernel, dynamic_smem
from ci.verify.libraryrules import label, spill_budget
from ci.verify.reading import LibraryReading
from flash_attn3_sm121.console import Block, Table, format_bytes
from flash_attn3_sm121.native.buildfacts import executed_line

SCHEMA = 1


def proof_line(executed: Mapping[str, Any] | None) -> str:
    """One line for people about what ran in software before the wheel was made. `executed` is None if nothing did."""
    if executed is None:
        return "12.1's kernels were not executed in software before this wheel was made (make prove, then make wheel)"
    return executed_line(executed)


def document(
    libraries: Sequence[LibraryReading], checks: Sequence[Check], *, proxy: bool, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """The verdict for programs; `verdict` is pass or fail. Holds no time and no path: it is part of the wheel."""
    return {
        "schema": SCHEMA,
        "verdict": "pass" if passed(checks) else "fail",
        "publishable": passed(checks) and not proxy,
        "notes": list(notes),
        "checks": [asdict(check) for check in checks],
        "libraries": {library.name: _library(library) for library in libraries},
    }


def to_json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def _library(library: LibraryReading) -> dict[str, Any]:
    return {
        "sha256": library.sha256,
        "size": library.size,
        "images": list(library.images),
        "ptx": list(library.ptx),
        "needed": list(library.elf.needed),
        "versions": [f"{name}: {version}" for name, version in library.elf.versions],
        "undefined": sorted(symbol.name for symbol in library.elf.undefined),
        "schemas": dict(library.schemas),
        "kernels": [
            {"label": label(kernel), "dynamic_smem": dynamic_smem(kernel.name), **asdict(kernel)}
            for kernel in library.kernels
        ],
    }


HEAD = ("instr", "MMA", "copy", "regs", "stack", "STL", "limit", "static", "dynamic", "kernel")


def _table(kernels: Iterable[Kernel]) -> Table:
    rows = []
    for kernel in sorted(kernels, key=lambda kernel: (kernel.kind, label(kernel))):
        counts = (
            kernel.instructions, kernel.tensor_core, kernel.async_copies, kernel.registers, kernel.stack,
            kernel.spill_stores, spill_budget(kernel), kernel.static_smem, dynamic_smem(kernel.name) or "-",
        )  # fmt: skip
        rows.append((*map(str, counts), label(kernel)[:66]))
    return Table(head=HEAD, rows=rows, right=frozenset(range(9)), spare=(HEAD.index("static"),))


def to_blocks(
    name: str, libraries: Sequence[LibraryReading], checks: Sequence[Check], *, kernels: bool, notes: Sequence[str] = ()
) -> list[Block]:
    """What was found, for people: each library with its kernels (if `kernels`), each check, one line to end with."""
    blocks: list[Block] = []
    for library in libraries:
        size = format_bytes(library.size)
        blocks.append(f"{library.name}: {size}, {' '.join((*library.images, *library.ptx))}")
        blocks += [_table(library.kernels), ""] if kernels else []
    blocks += [check.line() for check in checks]
    blocks += [f"note {note}" for note in notes]
    failed = sum(not check.ok for check in checks)
    return [*blocks, f"{name}: {'pass' if not failed else f'FAIL, {failed} of {len(checks)} checks'}"]
