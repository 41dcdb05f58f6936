"""Artifacts: what one machine makes and another assembles. A folder with `artifact.json` and the files that it names.

A `library` artifact is a finished family library; an `objects` artifact is one shard of a family's units. The identity
says what they were made from: artifacts with different identities are never put together, and the difference is named.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ci.cache.folders import file_sha256
from ci.cache.objects import ObjectReport
from ci.plan.plan import FamilyPlan
from flash_attn3_sm121.errors import AssembleError
from flash_attn3_sm121.files import put_folder

SCHEMA = 3
MANIFEST = "artifact.json"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Everything that parts of one wheel must agree on."""

    pin: str  # upstream's commit
    sources: str  # both tree ids
    edits: str  # hash of the edited sources beyond the trees: the edit list and csrc/
    cuda: str
    toolchain: str  # fingerprint
    cxx: str
    torch_headers: str
    profile: str
    platform: str
    version: str  # of the Python package
    proxy: str  # the device of a test build, else empty

    def differences(self, other: Identity) -> list[str]:
        """`field: mine / theirs` for all that differs."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return [f"{name}: {mine} / {theirs}" for name, mine, theirs in pairs if mine != theirs]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One part of a wheel. `files` maps names in the folder to sha256."""

    kind: str  # library or objects
    family: str
    identity: Identity
    targets: tuple[str, ...]  # as in an architecture list: 12.1, 9.0+PTX
    flags: Mapping[str, tuple[str, ...]]  # unit -> flags
    shard: str
    files: Mapping[str, str]
    reports: tuple[ObjectReport, ...]
    kernels: Mapping[str, str]  # of those for 12.1, by mangled name: the hash of their PTX, where it was kept

    @property
    def name(self) -> str:
        shard = "" if self.kind == "library" else f"-{self.shard.replace('/', 'of')}"
        return f"{self.family}-{self.identity.platform}-{self.identity.profile}{shard}"

    def to_json(self) -> str:
        data = {"schema": SCHEMA, **asdict(self)}
        return json.dumps(data, indent=1, sort_keys=True) + "\n"


def _from_json(text: str, *, origin: str) -> Artifact:
    try:
        data: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise AssembleError(f"{origin}: not JSON: {error}") from error
    if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
        raise AssembleError(f"{origin}: expected an artifact of schema {SCHEMA}")
    names = {field.name for field in fields(Artifact)}
    if set(data) != names:
        raise AssembleError(f"{origin}: expected the fields {sorted(names)}, found {sorted(data)}")
    data["identity"] = Identity(**data["identity"])
    data["targets"] = tuple(data["targets"])
    data["flags"] = {unit: tuple(words) for unit, words in data["flags"].items()}
    data["reports"] = tuple(ObjectReport.from_fields(report) for report in data["reports"])
    return Artifact(**data)


@dataclass(frozen=True, kw_only=True)
class Part:
    """An artifact and where its files lie. `plan` is what it was made from, in the process that made it."""

    artifact: Artifact
    paths: Mapping[str, Path]
    plan: FamilyPlan | None = None

    @property
    def place(self) -> str:
        """For messages."""
        return str(next(iter(self.paths.values())).parent)


def write(folder: Path, part: Part) -> Path:
    """Make `folder/<artifact name>/`; an older one of that name is replaced."""
    final = folder / part.artifact.name
    with put_folder(final) as new:
        for file, path in part.paths.items():
            shutil.copyfile(path, new / file)
        (new / MANIFEST).write_text(part.artifact.to_json(), encoding="utf-8")
        if final.exists():
            shutil.rmtree(final)
    return final


def read(folder: Path) -> Part:
    """Read an artifact and check its files against their hashes."""
    path = folder / MANIFEST
    if not path.is_file():
        raise AssembleError(
            f"no artifact in {folder}: {MANIFEST} is missing", hint="give folders that `python -m ci build` wrote"
        )
    artifact = _from_json(path.read_text(encoding="utf-8"), origin=str(path))
    for name, expected in artifact.files.items():
        if not (folder / name).is_file():
            raise AssembleError(f"{folder}: {name} is missing")
        found = file_sha256(folder / name)
        if found != expected:
            raise AssembleError(f"{folder}/{name}: expected sha256 {expected}, found {found}", hint="copy it again")
    return Part(artifact=artifact, paths={name: folder / name for name in artifact.files})
