"""A verdict as a document and as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from ci.verify.checks import Check, passed
from ci.verify.kernels import Kernel, dynamic_smem
from ci.verify.libraryrules import label, spill_budget
from ci.verify.reading import LibraryReading

SCHEMA = 1


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


def _table(kernels: Iterable[Kernel]) -> list[str]:
    columns = f"{'instr':>6} {'MMA':>5} {'copy':>5} {'regs':>5} {'stack':>5} {'STL':>4} {'limit':>5}"
    columns += f" {'static':>6} {'dynamic':>7}"
    head = f"  {'kernel':66} {columns}"
    rows = [
        f"  {label(k)[:66]:66} {k.instructions:6} {k.tensor_core:5} {k.async_copies:5} {k.registers:5} {k.stack:5} "
        f"{k.spill_stores:4} {spill_budget(k):5} {k.static_smem:6} {dynamic_smem(k.name) or '-':>7}"
        for k in sorted(kernels, key=lambda k: (k.kind, label(k)))
    ]
    return [head, *rows]


def text(
    name: str, libraries: Sequence[LibraryReading], checks: Sequence[Check], *, kernels: bool, notes: Sequence[str] = ()
) -> str:
    """The verdict for people: each library's kernels (if wanted), each check, one line to end with."""
    lines = []
    for library in libraries:
        lines.append(f"{library.name}: {library.size} bytes, {' '.join((*library.images, *library.ptx))}")
        lines += [*_table(library.kernels), ""] if kernels else []
    lines += [check.line() for check in checks]
    lines += [f"note {note}" for note in notes]
    failed = sum(not check.ok for check in checks)
    lines.append(f"{name}: {'pass' if not failed else f'FAIL, {failed} of {len(checks)} checks'}")
    return "\n".join(lines) + "\n"
