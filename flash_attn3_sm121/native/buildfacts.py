"""What a family library is and holds: written by the harness beside the library, read by the run-time gate.

The file is `lib/<family>.json`. parse and format live in one class so that the two sides cannot drift apart.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from flash_attn3_sm121.arch import FAMILIES, Family, Image
from flash_attn3_sm121.errors import FactsError

EXECUTED_FILE = "executed.json"  # beside the libraries of a wheel

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class BuildFacts:
    """Facts of one family library. `images` and `ptx` are what is really in the binary, as read back by `verify`."""

    family: str
    effective_arch: int
    library: str  # file name beside the facts file
    sha256: str
    namespace: str  # torch op namespace the library registers, e.g. flash_attn3_sm8x
    images: tuple[str, ...]
    ptx: tuple[str, ...]
    dtypes: tuple[str, ...]
    head_dims: tuple[int, ...]
    backward_head_dims: tuple[int, ...]
    features: tuple[str, ...]
    smem_limit: int
    profile: str
    platform: str  # linux_aarch64 or linux_x86_64
    cuda: str
    upstream: str
    proxy: bool = False  # a test build that carries machine code of another device; never published

    def __post_init__(self) -> None:
        known = {str(family) for family in FAMILIES}
        if self.family not in known:
            raise FactsError(f"build facts: family: expected one of {sorted(known)}, found {self.family!r}")
        spec = FAMILIES[Family(self.family)]
        if self.effective_arch != spec.effective_arch:
            raise FactsError(
                f"build facts of {self.family}: effective_arch: expected {spec.effective_arch}, "
                f"found {self.effective_arch}"
            )
        if self.smem_limit > spec.smem_limit:
            raise FactsError(
                f"build facts of {self.family}: smem_limit: expected at most {spec.smem_limit}, found {self.smem_limit}"
            )
        table: dict[str, tuple[Collection[object], Collection[object]]] = {
            "dtypes": (self.dtypes, spec.dtypes),
            "head_dims": (self.head_dims, spec.head_dims),
            "backward_head_dims": (self.backward_head_dims, spec.head_dims),
            "features": (self.features, spec.features),
        }
        for field, (given, possible) in table.items():
            unknown = [str(word) for word in given if word not in possible]
            if unknown:
                words = ", ".join(sorted(map(str, possible))) or "none"
                raise FactsError(
                    f"build facts of {self.family}: {field}: expected some of {words}, found {', '.join(unknown)} too"
                )
        for image in (*self.images, *self.ptx):
            Image.parse(image)

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str, *, origin: str) -> BuildFacts:
        try:
            data: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise FactsError(f"{origin}: not JSON: {error}") from error
        if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
            raise FactsError(f"{origin}: expected build facts of schema {SCHEMA}", hint="reinstall the wheel")
        names = {field.name for field in fields(cls)}
        missing, extra = sorted(names - {"proxy"} - set(data)), sorted(set(data) - names)
        if missing or extra:
            raise FactsError(f"{origin}: missing fields {missing}, unknown fields {extra}", hint="reinstall the wheel")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)

    @classmethod
    def read(cls, path: Path) -> BuildFacts:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise FactsError(f"cannot read {path}: {error.strerror}", hint="reinstall the wheel") from error
        return cls.from_json(text, origin=str(path))

    @property
    def line(self) -> str:
        """What the library is, for people: pin, profile, machine code, types, head dims, features that are left out."""
        lacking = sorted(FAMILIES[Family(self.family)].features - {*self.features})
        parts = (
            f"pin {self.upstream}, profile {self.profile}, {', '.join((*self.images, *self.ptx))}, CUDA {self.cuda}",
            ", ".join(self.dtypes),
            f"head dims {', '.join(str(dim) for dim in self.head_dims)}",
            *([f"without {', '.join(lacking)}"] if lacking else []),
        )
        return "; ".join(parts)

    def code_for(self, major: int, minor: int) -> str | None:
        """The image (or PTX) in this library that a device of that capability would run, exact match first."""
        for names in (self.images, self.ptx):
            for image in sorted(map(Image.parse, names), key=lambda image: -image.number):
                if image.runs_on(major, minor):
                    return str(image)
        return None


def executed_line(document: Mapping[str, Any]) -> str:
    """What a wheel's executed.json says, in a line: which of 12.1's kernels ran in software before it was made."""
    wrong = f"{document['wrong']} of them wrong" if document["wrong"] else "none wrong"
    count, cases = document["attention"], document["cases"]
    parts = [part for row in document.get("kernels", ()) for part in row.get("parts", {}).values()]
    share = f", errors at most {100 * max(parts):.0f} % of their limits" if parts else ""
    record = f" (the same PTX, by docs/results/{document['record']})" if "record" in document else ""
    return f"executed in software: {count} attention kernels for 12.1 in {cases} cases, {wrong}{share}{record}"
