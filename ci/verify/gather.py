"""Reading a wheel: its files, and everything about each family library that can be read from its bytes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ci.console import Narrator
from ci.verify import elf, kernels, schemas
from ci.verify.kernels import Kernel
from flash_attn3_sm121.errors import CompileError, VerifyError
from flash_attn3_sm121.native.buildfacts import BuildFacts

LIB = "flash_attn3_sm121/lib/"


@dataclass(frozen=True, kw_only=True)
class Disassembler:
    """cuobjdump, with the folder that holds nvdisasm for it."""

    cuobjdump: Path
    nvdisasm: Path

    def run(self, option: str, library: Path, narrate: Narrator) -> str:
        argv = [str(self.cuobjdump), option, str(library)]
        narrate.command(argv)
        env = {**os.environ, "PATH": f"{self.nvdisasm.parent}:{os.environ.get('PATH', '')}"}
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", env=env, check=False)
        # Where a library holds none of what is listed, cuobjdump says so on stderr and ends with 255.
        if done.returncode != 0 and "No PTX file found" not in done.stderr and "No ELF file found" not in done.stderr:
            raise CompileError(f"$ {' '.join(argv)}\nexit code {done.returncode}\n{done.stderr}")
        return done.stdout


@dataclass(frozen=True, kw_only=True)
class LibraryReading:
    """One family library, as read."""

    name: str  # file name
    size: int
    sha256: str
    elf: elf.SharedLibrary
    images: tuple[str, ...]
    ptx: tuple[str, ...]
    kernels: tuple[Kernel, ...]
    schemas: Mapping[str, str]
    paths: tuple[str, ...]  # strings that look like paths of a build machine


@dataclass(frozen=True, kw_only=True)
class WheelReading:
    """A wheel, as read."""

    name: str
    size: int
    sha256: str
    files: Mapping[str, str]  # path -> sha256
    record: Mapping[str, str]  # path -> what RECORD says, "sha256=..."
    wheel_metadata: str
    facts: tuple[BuildFacts, ...]
    provenance: Mapping[str, object]
    libraries: tuple[LibraryReading, ...]


# Folders in which people and machines build. System folders (/usr, /lib, /proc, /dev, ...) are named by the CUDA
# runtime itself.
_BUILD_FOLDERS = (
    b"/home/",
    b"/root/",
    b"/tmp/",
    b"/work/",
    b"/build/",
    b"/mnt/",
    b"/opt/",
    b"/Users/",
    b"/var/",
    b"/workspace/",
)


def build_paths(data: bytes) -> tuple[str, ...]:
    """Printable strings in a library that lie in a folder where things are built."""
    found = set()
    for folder in _BUILD_FOLDERS:
        start = data.find(folder)
        while start >= 0:
            first = start
            while first > 0 and 32 < data[first - 1] < 127:
                first -= 1
            end = start
            while end < len(data) and 32 < data[end] < 127:
                end += 1
            text = data[first:end].decode("ascii")
            if len(text) > len(folder) + 2:
                found.add(text[:200])
            start = data.find(folder, end)
    return tuple(sorted(found))


def read_library(path: Path, *, tool: Disassembler, narrate: Narrator) -> LibraryReading:
    """Everything about one library, from its bytes."""
    data = path.read_bytes()
    listed = kernels.parse_listing(tool.run("-lelf", path, narrate))
    ptx = kernels.parse_listing(tool.run("-lptx", path, narrate))
    code = kernels.parse_sass(tool.run("-sass", path, narrate))
    usage = kernels.parse_usage(tool.run("-res-usage", path, narrate))
    return LibraryReading(
        name=path.name,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        elf=elf.parse(data, name=path.name),
        images=tuple(sorted(set(listed))),
        ptx=tuple(sorted({name.replace("sm_", "compute_") for name in ptx})),
        kernels=join(code, usage, origin=path.name),
        schemas=schemas.from_library(data, origin=path.name),
        paths=build_paths(data),
    )


def join(
    code: Mapping[tuple[str, str], kernels.Code], usage: Mapping[tuple[str, str], kernels.Usage], *, origin: str
) -> tuple[Kernel, ...]:
    """Kernels: functions that have both machine code and a resource entry."""
    missing = sorted(set(usage) - set(code))
    if missing:
        raise VerifyError(f"{origin}: no machine code was read for {missing[0][1]} ({missing[0][0]})")
    return tuple(
        Kernel(
            name=name,
            image=image,
            kind=kernels.kind(name),
            instructions=counts.instructions,
            tensor_core=counts.tensor_core,
            async_copies=counts.async_copies,
            spill_stores=counts.spill_stores,
            spill_loads=counts.spill_loads,
            registers=usage[image, name].registers,
            stack=usage[image, name].stack,
            static_smem=usage[image, name].shared,
        )
        for (image, name), counts in sorted(code.items())
        if (image, name) in usage
    )


def read_wheel(
    path: Path,
    *,
    tool: Disassembler | None = None,
    narrate: Narrator | None = None,
    libraries: Mapping[str, LibraryReading] | None = None,
) -> WheelReading:
    """Read a wheel. Raises VerifyError where it is not one, or lacks the files that every wheel of ours has.

    Libraries are disassembled with `tool`; a reading in `libraries` is used instead where its bytes are the same.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            contents = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    except (OSError, zipfile.BadZipFile) as error:
        raise VerifyError(f"cannot read {path} as a wheel: {error}") from error
    info = [name for name in contents if name.endswith(".dist-info/RECORD") and name.count("/") == 1]
    if len(info) != 1 or f"{LIB}provenance.json" not in contents:
        raise VerifyError(f"{path.name}: not a wheel of this project with machine code (no RECORD or provenance)")
    folder = info[0].removesuffix("RECORD")
    names = sorted(name for name in contents if name.startswith(LIB) and name.endswith(".so"))
    facts = sorted(name for name in contents if name.startswith(LIB) and f"{LIB}flash_attn3_{_stem(name)}.so" in names)
    readings = _readings({name: contents[name] for name in names}, tool, narrate or Narrator(), libraries or {})
    return WheelReading(
        name=path.name,
        size=path.stat().st_size,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        files={name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
        record=_record(contents[info[0]].decode("utf-8")),
        wheel_metadata=contents.get(f"{folder}WHEEL", b"").decode("utf-8"),
        facts=tuple(BuildFacts.from_json(contents[name].decode("utf-8"), origin=name) for name in facts),
        provenance=json.loads(contents[f"{LIB}provenance.json"]),
        libraries=readings,
    )


def _readings(
    contents: Mapping[str, bytes], tool: Disassembler | None, narrate: Narrator, known: Mapping[str, LibraryReading]
) -> tuple[LibraryReading, ...]:
    found = []
    with tempfile.TemporaryDirectory(prefix="fa3-verify-") as work:
        for name, data in contents.items():
            file = name.removeprefix(LIB)
            if file in known and known[file].sha256 == hashlib.sha256(data).hexdigest():
                found.append(known[file])
                continue
            if tool is None:
                raise VerifyError(f"{file}: no disassembler to read it with")
            copy = Path(work) / file
            copy.write_bytes(data)
            found.append(read_library(copy, tool=tool, narrate=narrate))
    return tuple(found)


def _stem(name: str) -> str:
    return name.removeprefix(LIB).removesuffix(".json") if name.endswith(".json") else "?"


def _record(text: str) -> dict[str, str]:
    rows = (line.rsplit(",", 2) for line in text.splitlines() if line)
    return {row[0].strip('"'): row[1] for row in rows}
