"""The toolchain's lock file: packages by version, file name and sha256 for each host, and torch's headers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci.index import Wanted
from ci.plan.archs import Platform
from ci.sources.treeid import Entry, parse_manifest, tree_id
from flash_attn3_sm121.errors import ToolchainError

SCHEMA = 1
FILE = Path(__file__).resolve().parent / "toolchain.json"
MACHINES = tuple(sorted(platform.value for platform in Platform))

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Package:
    """One of the compiler's packages, with its wheel for each machine."""

    project: str
    version: str
    wheels: Mapping[str, Wanted]


@dataclass(frozen=True, kw_only=True)
class TorchHeaders:
    """The few folders of torch's headers that the stable ABI needs, in a wheel that need not be fetched whole."""

    wheel: Wanted
    version: str
    prefix: str
    folders: tuple[str, ...]
    id: str
    files: tuple[Entry, ...]


@dataclass(frozen=True, kw_only=True)
class Pins:
    """The whole file, checked."""

    cuda: tuple[int, int]
    prefix: str  # the folder inside the wheels that is a toolkit's root
    packages: tuple[Package, ...]
    runtime: str  # the project that has the static runtime, which a cross build takes for its target
    torch_headers: TorchHeaders

    def package(self, project: str) -> Package:
        return next(package for package in self.packages if package.project == project)


def read_pins(path: Path = FILE, *, text: str | None = None) -> Pins:
    """Read and check the lock, or another text for it beside the same manifests.

    Raises:
        ToolchainError: it names the key, what was expected and what was found.
    """
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8") if text is None else text)
        if data["schema"] != SCHEMA:
            raise ToolchainError(f"{path}: schema: expected {SCHEMA}, found {data['schema']!r}")
        major, minor = (int(part) for part in data["cuda"].split("."))
        pins = Pins(
            cuda=(major, minor),
            prefix=data["prefix"],
            packages=tuple(_package(row, str(path)) for row in data["packages"]),
            runtime=data["runtime"],
            torch_headers=_headers(data["torch_headers"], path),
        )
    except OSError as error:
        raise ToolchainError(f"cannot read the toolchain lock {path}: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ToolchainError(f"{path}: {error}") from error
    except KeyError as error:
        raise ToolchainError(f"{path}: missing key {error}") from error
    if pins.runtime not in {package.project for package in pins.packages}:
        raise ToolchainError(f"{path}: runtime: expected one of the packages, found {pins.runtime!r}")
    return pins


def _package(row: Mapping[str, Any], origin: str) -> Package:
    where = f"{origin}: {row['project']}"
    if tuple(sorted(row["wheels"])) != MACHINES:
        raise ToolchainError(f"{where}.wheels: expected {MACHINES}, found {tuple(sorted(row['wheels']))}")
    wheels = {machine: _wanted(row["project"], wheel, where) for machine, wheel in row["wheels"].items()}
    for machine, wheel in wheels.items():
        start = f"{row['project'].replace('-', '_')}-{row['version']}-"
        if not (wheel.filename.startswith(start) and wheel.filename.endswith(f"_{machine}.whl")):
            raise ToolchainError(f"{where}: expected {start}*_{machine}.whl, found {wheel.filename}")
    return Package(project=row["project"], version=row["version"], wheels=wheels)


def _wanted(project: str, row: Mapping[str, Any], where: str) -> Wanted:
    if _SHA256.fullmatch(row["sha256"]) is None:
        raise ToolchainError(f"{where}: sha256: expected {_SHA256.pattern}, found {row['sha256']!r}")
    return Wanted(project=project, filename=row["filename"], sha256=row["sha256"])


def _headers(row: Mapping[str, Any], path: Path) -> TorchHeaders:
    manifest = path.parent / row["manifest"]
    files = parse_manifest(manifest.read_text(encoding="utf-8"), origin=str(manifest))
    found = tree_id(files)
    if found != row["id"]:
        raise ToolchainError(f"{path}: torch_headers.id: expected {row['id']}, but {manifest.name} hashes to {found}")
    return TorchHeaders(
        wheel=_wanted(row["project"], row, f"{path}: torch_headers"),
        version=row["version"],
        prefix=row["prefix"],
        folders=tuple(row["folders"]),
        id=row["id"],
        files=files,
    )
