"""The CUDA version that a plan is for, known without fetching or running anything."""

from __future__ import annotations

import json
from pathlib import Path

from flash_attn3_sm121.errors import ToolchainError

PINS = Path(__file__).parent.parent / "toolchain" / "toolchain.json"


def parse(text: str, *, origin: str) -> tuple[int, int]:
    """(13, 0) of "13.0" or "13.0.88"."""
    parts = text.split(".")
    if len(parts) < 2 or not all(part.isdigit() for part in parts[:2]):
        raise ToolchainError(f"{origin}: expected a CUDA version such as 13.0, found {text!r}")
    return int(parts[0]), int(parts[1])


def pinned() -> tuple[int, int]:
    return parse(json.loads(PINS.read_text(encoding="utf-8"))["cuda"], origin=str(PINS))


def installed(home: Path) -> tuple[int, int]:
    """Of a toolkit's folder, as its version.json says."""
    path = home / "version.json"
    if not path.is_file():
        raise ToolchainError(
            f"no CUDA toolkit in {home}: {path} is missing", hint="give the folder that holds bin/nvcc"
        )
    data = json.loads(path.read_text(encoding="utf-8"))
    return parse(str(data.get("cuda_nvcc", data.get("cuda", {})).get("version", "")), origin=str(path))


def planned(home: Path | None) -> tuple[int, int]:
    return pinned() if home is None else installed(home)
