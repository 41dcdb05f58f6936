"""The object cache: compiled units by content, outside the clone. A key hashes everything an object depends on."""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ci.cache.folders import file_sha256, locked, making
from ci.cache.includes import Closures
from ci.cache.ptx import kernel_hashes
from ci.plan.costs import Cost, Work
from ci.plan.plan import PlannedUnit
from flash_attn3_sm121.errors import CompileError
from flash_attn3_sm121.native.buildfacts import EXECUTED_FILE

SCHEMA = 2  # 1 kept no PTX
# A kernel of CUB's without a body. Whether a file holds it depends on the CUDA version, so no plan counts it.
_OF_CUB = "11EmptyKernelIvE"


@dataclass(frozen=True, kw_only=True)
class KernelUsage:
    """What ptxas said about one kernel for one image."""

    kernel: str  # mangled
    image: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    static_smem: int


@dataclass(frozen=True, kw_only=True)
class ObjectReport:
    """What compiling one unit cost and gave. Times are of the run that compiled it."""

    unit: str
    key: str
    sha256: str
    size: int
    cpu_s: float
    wall_s: float
    rss_gb: float
    usage: tuple[KernelUsage, ...]
    # nvcc's name of a PTX file -> sha256 of its text. Empty for the host file, and under a compiler cache (no --keep).
    ptx: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ObjectReport:
        data: dict[str, Any] = json.loads(text)
        if (schema := data.pop("schema", None)) != SCHEMA:
            raise CompileError(f"an object report: expected schema {SCHEMA}, found {schema!r}")
        return cls.from_fields(data)

    @classmethod
    def from_fields(cls, data: Mapping[str, Any]) -> ObjectReport:
        """A report from its fields, as `asdict` gives them."""
        return cls(**{**data, "usage": tuple(KernelUsage(**usage) for usage in data["usage"])})


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What names the compilers in a key: two builds with equal tools make equal objects from equal inputs."""

    toolchain: str
    cxx: str
    torch_headers: str

    def of(self, planned: PlannedUnit) -> list[str]:
        """Only the host file sees torch's headers."""
        return [self.toolchain, self.cxx] + ([] if planned.unit.is_cuda else [self.torch_headers])


class Sources:
    """The edited tree, hashed file by file on demand."""

    def __init__(self, folder: Path) -> None:
        # Include roots as the commands name them, relative to the work folder; `folder` is what `src` points to.
        self._folder = folder
        self._closures = Closures(folder, ("csrc", "hopper", "cutlass/include"))
        self._hashes: dict[str, str] = {}

    def digest(self, text: str, *, origin: str) -> str:
        """A hash of the text and of every file of the tree that it depends on."""
        total = hashlib.sha256(hashlib.sha256(text.encode()).digest())
        for name in self._closures.of(text, origin=origin):
            if name not in self._hashes:
                self._hashes[name] = file_sha256(self._folder / name)
            total.update(f"{name}\0{self._hashes[name]}\n".encode())
        return total.hexdigest()


def object_key(planned: PlannedUnit, *, sources: Sources, tools: Tools, launcher: str | None) -> str:
    """The key. A launcher is part of it: objects made through one need not be bit-identical to ours."""
    parts = {
        "schema": SCHEMA,
        "unit": planned.unit.file,  # the name is the seed of generated symbol names
        "sources": sources.digest(planned.unit.text, origin=f"units/{planned.unit.file}"),
        "flags": list(planned.flags),
        "tools": tools.of(planned),
        "launcher": launcher,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ObjectStore:
    """Objects under `cache/objects/<ab>/<key>/`: the object, its report, the compiler's output, its compressed PTX."""

    cache: Path

    def entry(self, key: str) -> str:
        return f"objects/{key[:2]}/{key}"

    def object(self, key: str) -> Path:
        """Where the object of that key is, or will be."""
        return self.cache / self.entry(key) / "unit.o"

    def find(self, key: str) -> tuple[Path, ObjectReport] | None:
        """The object and its report, if it is there and whole; a damaged entry counts as absent."""
        made = self.object(key)
        report = made.with_name("report.json")
        if not report.is_file() or not made.is_file():
            return None
        known = _read(report)
        if known is None or file_sha256(made) != known.sha256:
            return None
        if not all(made.with_name(f"{name}.xz").is_file() for name in known.ptx):
            return None
        return made, known

    def measured(self) -> dict[Work, Cost]:
        """The cost of compiling each unit when this machine did so last, whatever the unit's sources were then."""
        return {
            work: Cost(cpu_s=round(known.cpu_s, 1), rss_gb=round(known.rss_gb, 1))
            for work, known in self.last_reports().items()
        }

    def last_reports(self) -> dict[Work, ObjectReport]:
        """The newest report of each unit.

        Objects without PTX are left out, since a compiler cache's costs are not a compiler's. So are objects without
        machine code, and damaged reports.
        """
        reports = sorted(self.cache.glob("objects/*/*/report.json"), key=lambda path: path.stat().st_mtime)
        found: dict[Work, ObjectReport] = {}
        for path in reports:
            known = _read(path)
            if known is not None and known.ptx and known.usage:
                images = frozenset(usage.image for usage in known.usage)
                ours = [usage for usage in known.usage if _OF_CUB not in usage.kernel]
                found[Work(unit=known.unit, images=images, kernels=len(ours) // len(images))] = known
        return found

    def ptx(self, report: ObjectReport) -> dict[str, str]:
        """The PTX that was kept with an object: nvcc's name of each file, and its text.

        Raises:
            CompileError: a file is missing, or is not the one that the report names.
        """
        texts = {}
        for name, expected in report.ptx.items():
            path = self.cache / self.entry(report.key) / f"{name}.xz"
            try:
                data = lzma.decompress(path.read_bytes())
            except (OSError, lzma.LZMAError) as error:
                raise CompileError(f"{path}: the PTX of {report.unit} cannot be read: {error}") from error
            if (sha256 := hashlib.sha256(data).hexdigest()) != expected:
                raise CompileError(f"{path}: expected PTX with sha256 {expected}, found {sha256}")
            texts[name] = data.decode()
        return texts

    def kernels(self, reports: Iterable[ObjectReport], image: str) -> dict[str, str]:
        """The hash of each kernel's PTX for a GPU (see `kernel_hashes`), by mangled name."""
        texts = (text for report in reports for text in self.ptx(report).values())
        mine = (text for text in texts if f".target {image}\n" in text)
        return {name: sha256 for text in mine for name, sha256 in kernel_hashes(text).items()}

    def put(self, report: ObjectReport, *, made: Path, log: str, ptx: Mapping[str, bytes] | None = None) -> Path:
        """Store an object; call with the lock of `entry(key)` held."""
        with making(self.cache, self.entry(report.key)) as folder:
            shutil.copyfile(made, folder / "unit.o")
            for name, text in (ptx or {}).items():
                (folder / f"{name}.xz").write_bytes(lzma.compress(text))
            (folder / "log.txt").write_text(log, encoding="utf-8")
            (folder / "report.json").write_text(report.to_json(), encoding="utf-8")
        return self.object(report.key)


def _read(path: Path) -> ObjectReport | None:
    """A report; None if its file is damaged, or of another version of the cache."""
    try:
        return ObjectReport.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, KeyError, CompileError):
        return None


def _executed(keys: Iterable[str]) -> str:
    return f"executed/{hashlib.sha256(json.dumps(sorted(keys)).encode()).hexdigest()}"


def put_executed(cache: Path, keys: Iterable[str], document: Mapping[str, Any]) -> None:
    """Keep what `python -m ci prove` showed of a library's objects, for a wheel of the same objects."""
    entry = _executed(keys)
    with locked(cache, entry), making(cache, entry) as folder:
        (folder / EXECUTED_FILE).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def find_executed(cache: Path, keys: Iterable[str]) -> str | None:
    """The document's text, if these objects were executed."""
    path = cache / _executed(keys) / EXECUTED_FILE
    return path.read_text(encoding="utf-8") if path.is_file() else None
