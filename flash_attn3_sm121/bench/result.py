"""A run's results as data, with one JSON form that parses back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from flash_attn3_sm121.bench.measure import paired_ratio
from flash_attn3_sm121.bench.workloads import Workload
from flash_attn3_sm121.errors import UsageError

SCHEMA = 1
Status = Literal["ok", "wrong", "refused", "skipped", "failed"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One contender on one workload. Numbers are there only where `status` is ok."""

    contender: str
    status: Status
    why: str = ""
    error: float | None = None  # rms, relative
    tolerance: float | None = None
    first_ms: float | None = None  # the first call of all: loading, compiling, planning and checking by the contender
    median_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    samples_ms: tuple[float, ...] = ()
    peak_bytes: int | None = None
    tflops: float | None = None
    gbps: float | None = None
    of_ceiling: float | None = None  # the roofline's least time over the time taken


@dataclass(frozen=True, kw_only=True)
class WorkloadResult:
    """All contenders' results on one workload, in the order of the list of contenders."""

    workload: Workload
    flops: float
    bytes: int
    bound: str
    entries: tuple[Entry, ...]

    def entry(self, contender: str) -> Entry | None:
        return next((entry for entry in self.entries if entry.contender == contender), None)

    def ranked(self) -> list[Entry]:
        """The right results, fastest first. A wrong one has no rank."""
        timed = [entry for entry in self.entries if entry.status == "ok" and entry.median_ms is not None]
        return sorted(timed, key=lambda entry: entry.median_ms or 0.0)

    def times_faster(self, contender: str, than: str) -> float | None:
        """How many times faster one contender is than another, by paired rounds; None where one was not timed.

        The slower one may be wrong: its time is still a time to compare with.
        """
        fast, slow = self.entry(contender), self.entry(than)
        if not fast or not slow or not fast.samples_ms or len(fast.samples_ms) != len(slow.samples_ms):
            return None
        return paired_ratio(slow.samples_ms, fast.samples_ms)


@dataclass(frozen=True, kw_only=True)
class Report:
    """One run of the bench."""

    date: str
    commit: str
    command: str
    machine: dict[str, str]
    dtype: str
    ceiling_tflops: float
    ceiling_gbps: float
    seconds: float
    results: tuple[WorkloadResult, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def title(self) -> str:
        return self.machine.get("device", "unknown device")

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA, "tool": "flash-attn3 bench", **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, *, origin: str) -> Report:
        try:
            data: dict[str, Any] = json.loads(text)
            schema = data.pop("schema", None)
            data.pop("tool", None)
            if schema != SCHEMA:
                raise UsageError(f"{origin}: expected bench results of schema {SCHEMA}, found {schema}")
            results = tuple(_result(item) for item in data.pop("results"))
            return cls(**{**data, "notes": tuple(data.get("notes", ()))}, results=results)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"{origin}: not a result file of `flash-attn3 bench --json`: {error}") from error

    @classmethod
    def read(cls, path: Path) -> Report:
        try:
            return cls.from_json(path.read_text(encoding="utf-8"), origin=str(path))
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from error


def _result(data: dict[str, Any]) -> WorkloadResult:
    work = dict(data["workload"])
    work["lengths"] = tuple(work["lengths"])
    entries = tuple(Entry(**{**entry, "samples_ms": tuple(entry["samples_ms"])}) for entry in data["entries"])
    return WorkloadResult(**{**data, "workload": Workload(**work), "entries": entries})
