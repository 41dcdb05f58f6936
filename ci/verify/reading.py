"""Reading a wheel: its files, and everything about each family library that can be read from its bytes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ci.cache.folders import locked, making
from ci.process import execute, failure_text
from ci.toolchain import Toolchain
from ci.verify import elf, kernels, schemas
from ci.verify.kernels import Kernel
from flash_attn3_sm121.console import Narrator
from flash_attn3_sm121.errors import CompileError, VerifyError
from flash_attn3_sm121.native.buildfacts import BuildFacts

LIB = "flash_attn3_sm121/lib/"


@dataclass(frozen=True, kw_only=True)
class Disassembler:
    """cuobjdump, which finds nvdisasm in its own folder."""

    cuobjdump: Path
    narrate: Narrator

    @classmethod
    def of(cls, toolchain: Toolchain, narrate: Narrator) -> Disassembler:
        return cls(cuobjdump=toolchain.cuobjdump, narrate=narrate)

    def listing(self, option: str, library: Path) -> str:
        """What cuobjdump says of a library: -lelf, -lptx, -sass or -res-usage."""
        argv = [str(self.cuobjdump), option, str(library)]
        env = {**os.environ, "PATH": f"{self.cuobjdump.parent}:{os.environ.get('PATH', '')}"}
        done = execute(argv, narrate=self.narrate, env=env)
        # Where a library holds none of what is listed, cuobjdump says so on stderr and ends with 255.
        if done.returncode != 0 and "No PTX file found" not in done.stderr and "No ELF file found" not in done.stderr:
            raise CompileError(failure_text(argv, done.returncode, done.stderr))
        return done.stdout


@dataclass(frozen=True, kw_only=True)
class MachineCode:
    """What cuobjdump tells of a library."""

    images: tuple[str, ...]
    ptx: tuple[str, ...]
    kernels: tuple[Kernel, ...]


@dataclass(frozen=True, kw_only=True)
class LibraryReading(MachineCode):
    """One family library, as read."""

    name: str  # file name
    size: int
    sha256: str
    elf: elf.SharedLibrary
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
    executed: Mapping[str, Any] | None = None  # what was executed in software, where that was done


# Folders in which people and machines build. System folders (/usr, /lib, /proc, /dev, ...) are named by the CUDA
# runtime itself.
_BUILD_FOLDER = re.compile(rb"/(?:home|root|tmp|work|build|mnt|opt|Users|var|workspace)/")
_PRINTABLE = re.compile(rb"[!-~]{6,}")


def build_paths(data: bytes) -> tuple[str, ...]:
    """Printable strings in a library that lie in a folder where things are built."""
    paths = set()
    for text in _PRINTABLE.findall(data):
        folder = _BUILD_FOLDER.search(text)
        if folder and len(text) > len(folder[0]) + 2:
            paths.add(text[:200].decode("ascii"))
    return tuple(sorted(paths))


def read_library(path: Path, tool: Disassembler) -> LibraryReading:
    """Everything about one library, from its bytes."""
    data = path.read_bytes()
    return _reading(data, name=path.name, sha256=_sha256(data), code=read_machine_code(path, tool))


def read_machine_code(path: Path, tool: Disassembler) -> MachineCode:
    """A library's images and kernels. Disassembling a large library takes a minute."""
    listed = kernels.parse_listing(tool.listing("-lelf", path))
    ptx = kernels.parse_listing(tool.listing("-lptx", path))
    code = kernels.parse_sass(tool.listing("-sass", path))
    usage = kernels.parse_usage(tool.listing("-res-usage", path))
    return MachineCode(
        images=tuple(sorted(set(listed))),
        ptx=tuple(sorted({name.replace("sm_", "compute_") for name in ptx})),
        kernels=join(code, usage, origin=path.name),
    )


def remembered(
    path: Path,
    *,
    sha256: str,
    cache: Path,
    tool: Disassembler,
    fingerprint: str,
) -> LibraryReading:
    """A reading of a library, its machine code from the cache where that is known.

    Only the builder uses it, to make an unchanged wheel again in seconds; `python -m ci verify` always reads anew. A
    cache entry is named by the library's bytes, the disassembler and the code that reads its output.

    Args:
        sha256: of the library, which the caller knows already.
        fingerprint: names the disassembler.
    """
    here = Path(__file__).parent
    code = _sha256(b"".join((here / name).read_bytes() for name in ("reading.py", "kernels.py", "loops.py")))
    entry = f"readings/{_sha256(chr(10).join((sha256, fingerprint, code)).encode())}"
    with locked(cache, entry):
        file = cache / entry / "machine-code.json"
        if file.is_file():
            known = json.loads(file.read_text(encoding="utf-8"))
            machine_code = MachineCode(
                images=tuple(known["images"]),
                ptx=tuple(known["ptx"]),
                kernels=tuple(Kernel(**kernel) for kernel in known["kernels"]),
            )
        else:
            machine_code = read_machine_code(path, tool)
            with making(cache, entry) as work:
                (work / "machine-code.json").write_text(json.dumps(asdict(machine_code)), encoding="utf-8")
    return _reading(path.read_bytes(), name=path.name, sha256=sha256, code=machine_code)


def _reading(data: bytes, *, name: str, sha256: str, code: MachineCode) -> LibraryReading:
    return LibraryReading(
        name=name,
        size=len(data),
        sha256=sha256,
        elf=elf.parse(data, name=name),
        **vars(code),
        schemas=schemas.from_library(data, origin=name),
        paths=build_paths(data),
    )


def join(
    code: Mapping[tuple[str, str], kernels.Code], usage: Mapping[tuple[str, str], kernels.Usage], *, origin: str
) -> tuple[Kernel, ...]:
    """Kernels: functions that have both machine code and a resource entry."""
    kernels.demangle(name for _, name in code)  # all with one call
    missing = sorted(set(usage) - set(code))
    if missing:
        raise VerifyError(f"{origin}: no machine code was read for {missing[0][1]} ({missing[0][0]})")
    found = []
    for (image, name), counts in sorted(code.items(), key=lambda item: item[0]):
        if (image, name) in usage:
            known = vars(counts) | vars(usage[image, name]) | {"loop": kernels.loop_of(name, counts.loop)}
            found.append(Kernel(name=name, image=image, kind=kernels.kind(name), **known))
    return tuple(found)


def read_wheel(path: Path, tool: Disassembler) -> WheelReading:
    """Read a wheel from its bytes alone. Raises VerifyError as `read_wheel_bytes` does."""

    def disassembled(name: str, data: bytes) -> LibraryReading:
        with tempfile.TemporaryDirectory(prefix="fa3-verify-") as scratch:
            copy = Path(scratch) / name
            copy.write_bytes(data)
            return read_library(copy, tool)

    try:
        data = path.read_bytes()
    except OSError as error:
        raise VerifyError(f"cannot read {path} as a wheel: {error}") from error
    return _wheel_reading(data, path.name, disassembled)


def read_wheel_bytes(data: bytes, *, name: str, libraries: Mapping[str, LibraryReading]) -> WheelReading:
    """Read a wheel whose libraries were read before; their bytes must be the same."""

    def known(library: str, contents: bytes) -> LibraryReading:
        reading = libraries.get(library)
        if reading is None or reading.sha256 != _sha256(contents):
            raise VerifyError(f"{name}: {library} is not the library that was read")
        return reading

    return _wheel_reading(data, name, known)


def _wheel_reading(data: bytes, name: str, read: Callable[[str, bytes], LibraryReading]) -> WheelReading:
    """Raises VerifyError where it is no wheel, or lacks the files that every wheel of ours has."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            contents = {member: archive.read(member) for member in archive.namelist() if not member.endswith("/")}
    except zipfile.BadZipFile as error:
        raise VerifyError(f"cannot read {name} as a wheel: {error}") from error
    info = [member for member in contents if member.endswith(".dist-info/RECORD") and member.count("/") == 1]
    if len(info) != 1 or f"{LIB}provenance.json" not in contents:
        raise VerifyError(f"{name}: not a wheel of this project with machine code (no RECORD or provenance)")
    folder = info[0].removesuffix("RECORD")
    names = sorted(member for member in contents if member.startswith(LIB) and member.endswith(".so"))
    facts = sorted(
        member for member in contents if member.startswith(LIB) and f"{LIB}flash_attn3_{_stem(member)}.so" in names
    )
    return WheelReading(
        name=name,
        size=len(data),
        sha256=_sha256(data),
        files={member: _sha256(content) for member, content in contents.items()},
        record=_record(contents[info[0]].decode("utf-8")),
        wheel_metadata=contents.get(f"{folder}WHEEL", b"").decode("utf-8"),
        facts=tuple(BuildFacts.from_json(contents[member].decode("utf-8"), origin=member) for member in facts),
        provenance=json.loads(contents[f"{LIB}provenance.json"]),
        libraries=tuple(read(member.removeprefix(LIB), contents[member]) for member in names),
        executed=json.loads(contents[f"{LIB}executed.json"]) if f"{LIB}executed.json" in contents else None,
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _stem(name: str) -> str:
    return name.removeprefix(LIB).removesuffix(".json") if name.endswith(".json") else "?"


def _record(text: str) -> dict[str, str]:
    rows = (line.rsplit(",", 2) for line in text.splitlines() if line)
    return {row[0].strip('"'): row[1] for row in rows}
