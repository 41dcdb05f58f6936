"""Linking a family's objects with the stand-in runtime, and asking the result what it would launch."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci import ROOT
from ci.build.family import Builder
from ci.build.link import TORCH_LIBRARIES
from ci.cache.objects import ObjectReport
from ci.plan.plan import FamilyPlan
from ci.process import output_of
from ci.prove.standin.calls import Call, Device
from ci.toolchain import Toolchain

SOURCE = Path(__file__).with_name("cudart.cpp")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One kernel launch as the host code asked for it. `status` is what the runtime answered; 0 is success."""

    kernel: str
    grid: Sequence[int]
    block: Sequence[int]
    cluster: Sequence[int]
    smem: int
    status: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The result of one call."""

    call: Call
    launches: tuple[Launch, ...]
    error: str | None


@dataclass(frozen=True, kw_only=True)
class Made:
    """A family's host code that can be asked, and what the compiler said of its kernels."""

    library: Path  # for this machine's architecture: no other can be asked
    namespace: str
    reports: tuple[ObjectReport, ...]

    def ask(self, device: Device, calls: Sequence[Call]) -> tuple[Answer, ...]:
        """Every call's launches on that device, from a fresh process (a library asks for a device once)."""
        argv = [sys.executable, "-m", "ci.prove.standin.drive", str(self.library), self.namespace]
        argv.append(json.dumps(device.properties))
        documents = json.dumps([call.document for call in calls])
        answers = json.loads(output_of(argv, stdin=documents, cwd=ROOT))
        return tuple(_answer(call, found) for call, found in zip(calls, answers, strict=True))


def _answer(call: Call, found: dict[str, Any]) -> Answer:
    return Answer(call=call, launches=tuple(Launch(**item) for item in found["launches"]), error=found["error"])


def make(builder: Builder, family: FamilyPlan, *, output: Path) -> Made:
    """Compile what the object cache lacks of the family, and link it under `output`."""
    library, name = output / f"standin_{family.family}.so", str(family.family)
    with builder.folder() as work:
        reports = builder.compile({name: builder.keys(family.units)}, work=work)[name]
        objects = [builder.store.object(report.key) for report in reports]
        linker = builder.linker(name, work=work)
        linker.make_stubs()
        for argv in _commands(builder.inputs.toolchain, objects, library):
            linker.call(argv, name=library.name)
    return Made(library=library, namespace=family.namespace, reports=reports)


def _commands(toolchain: Toolchain, objects: Sequence[Path], library: Path) -> list[list[str]]:
    """The commands that compile the stand-in runtime and link the library. -Bsymbolic: its symbols win over torch's."""
    includes = [word for folder in toolchain.include_dirs for word in ("-isystem", str(folder))]
    compiled = [toolchain.cxx, "-O1", "-std=c++17", "-fPIC", "-fvisibility=hidden", *includes]
    linked = [toolchain.cxx, "-shared", "-Wl,-Bsymbolic", "-o", str(library), *map(str, objects), "obj/standin.o"]
    torch = ["-Wl,--no-as-needed", *(f"stubs/{soname}" for soname in TORCH_LIBRARIES)]
    return [
        [*compiled, "-c", str(SOURCE), "-o", "obj/standin.o"],
        [*linked, *torch, "-Wl,-z,now"],
    ]
