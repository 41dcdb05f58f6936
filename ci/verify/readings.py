"""What a library's machine code holds, remembered by content: disassembling a large library takes a minute.

Only the builder uses it, to rebuild an unchanged wheel in seconds; `python -m ci verify` always reads anew. An entry is
named by the library's bytes, the disassembler and the code that reads its output.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ci.cache.folders import locked, making
from ci.console import Narrator
from ci.verify import elf, schemas
from ci.verify.gather import Disassembler, LibraryReading, build_paths, read_library
from ci.verify.kernels import Kernel

_CODE = ("gather.py", "kernels.py")


def _key(data: bytes, tool: str) -> str:
    here = Path(__file__).parent
    code = hashlib.sha256(b"".join((here / name).read_bytes() for name in _CODE)).hexdigest()
    return hashlib.sha256(f"{hashlib.sha256(data).hexdigest()}\n{tool}\n{code}".encode()).hexdigest()


def _document(reading: LibraryReading) -> dict[str, Any]:
    kernels = [asdict(kernel) for kernel in reading.kernels]
    return {"images": reading.images, "ptx": reading.ptx, "kernels": kernels}


def remembered(
    path: Path,
    *,
    cache: Path,
    tool: Disassembler,
    fingerprint: str,
    narrate: Narrator,
    read: Callable[..., LibraryReading] = read_library,
) -> LibraryReading:
    """A reading of the library at `path`, from the cache where its bytes are known; `fingerprint` names the tool."""
    data = path.read_bytes()
    entry = f"readings/{_key(data, fingerprint)}"
    with locked(cache, entry):
        file = cache / entry / "machine-code.json"
        if file.is_file():
            known = json.loads(file.read_text(encoding="utf-8"))
            return LibraryReading(
                name=path.name,
                size=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                elf=elf.parse(data, name=path.name),
                images=tuple(known["images"]),
                ptx=tuple(known["ptx"]),
                kernels=tuple(Kernel(**kernel) for kernel in known["kernels"]),
                schemas=schemas.from_library(data, origin=path.name),
                paths=build_paths(data),
            )
        reading = read(path, tool=tool, narrate=narrate)
        with making(cache, entry) as work:
            (work / "machine-code.json").write_text(json.dumps(_document(reading)), encoding="utf-8")
    return reading
