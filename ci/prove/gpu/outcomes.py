"""How to read the outcome of a stage's command. A reader is given how the command ended and the folder it wrote to."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ci.prove.gpu.child import Ended
from ci.prove.gpu.stage import Status

Verdict = tuple[Status, str, Mapping[str, Any]]
PYTEST_NO_TESTS = 5


def _exit(ended: Ended, folder: Path) -> Verdict:
    return (Status.OK if ended.code == 0 else Status.FAILED), ended.how, {}


def _document(ended: Ended) -> Any:
    """The JSON that a command printed; None where it printed something else."""
    try:
        return json.loads(ended.stdout)
    except ValueError:
        return None


def _doctor(ended: Ended, folder: Path) -> Verdict:
    said = _document(ended)
    if said is None:
        return Status.FAILED, f"no JSON on stdout ({ended.how})", {}
    faults = [finding for finding in said["findings"] if finding["level"] == "fault"]
    text = "; ".join(fault["title"] for fault in faults) or "no fault"
    return (Status.WRONG if faults else Status.OK), text, said


def _expected_faults(ended: Ended, folder: Path) -> Verdict:
    """As `_doctor`, for runs where faults are expected: on a CPU, or with a library built for another device."""
    status, text, said = _doctor(ended, folder)
    if status is Status.WRONG:
        return Status.OK, f"not counted here: {text}", said
    return status, text, said


def _selftest(ended: Ended, folder: Path) -> Verdict:
    said = _document(ended)
    if said is None:
        return Status.FAILED, f"no JSON on stdout ({ended.how})", {}
    bad = [row for row in said["results"] if not row["good"]]
    text = f"{len(said['results']) - len(bad)} of {len(said['results'])} results agree with fp64"
    return (Status.WRONG if bad or ended.code else Status.OK), text, {"wrong": bad, "device": said["device"]}


def _pytest(ended: Ended, folder: Path) -> Verdict:
    last = next((line for line in reversed(ended.stdout.splitlines()) if line.strip()), ended.how)
    if ended.code == PYTEST_NO_TESTS:
        return Status.NOT_APPLICABLE, "no test is marked gpu", {}
    return (Status.OK if ended.code == 0 else Status.WRONG), last.strip("= "), {}


def ratios(bench: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """workload -> contender -> its median time as a multiple of our fastest."""
    multiples: dict[str, dict[str, float]] = {}
    for result in bench["results"]:
        times = {entry["contender"]: entry["median_ms"] for entry in result["entries"] if entry["median_ms"]}
        ours = [times[name] for name in ("native", "sdpa", "flex") if name in times]
        if ours:
            best = times.get("native", min(ours))
            multiples[result["workload"]["name"]] = {name: round(ms / best, 3) for name, ms in times.items()}
    return multiples


def _bench(ended: Ended, folder: Path) -> Verdict:
    path = folder / "bench.json"
    if not path.is_file():
        return Status.FAILED, f"it left no bench.json ({ended.how})", {}
    said = json.loads(path.read_text(encoding="utf-8"))
    data = {"times_as_long_as_ours": ratios(said), "machine": said["machine"]}
    text = f"{len(said['results'])} workloads" + (f", {ended.how}" if ended.code else "")
    return (Status.WRONG if ended.code else Status.OK), text, data


_SUMMARY = re.compile(r"(ERROR|RACECHECK) SUMMARY: (\d+) (error|hazard)")


# Kernels with such a scheduler hand each tile's number over in shared memory, by bar.arrive and bar.sync on named
# barriers. racecheck does not follow these: it reports the PTX manual's own example too
# (ci/prove/gpu/named_barriers.cu, run on an H200 with CUDA 13.0). Such a report is one read and one write a
# few instructions apart; any other one counts.
_NAMED_BARRIERS, _APART = "PersistentTileScheduler", 0x200
_REPORT = re.compile(r"^=+ +(?:Error|Warning): Race reported (.*(?:\n=+ +and .*)*)", re.MULTILINE)
_PLACE = re.compile(r"\b(Read|Write) access at .*\+(0x[0-9a-f]+)")


def hands_over_a_tile(report: str) -> bool:
    """Whether a report of racecheck is its false alarm about a persistent scheduler's named barriers."""
    places = sorted((kind, int(offset, 16)) for kind, offset in _PLACE.findall(report))
    if [kind for kind, _ in places] != ["Read", "Write"] or report.count(_NAMED_BARRIERS) != len(places):
        return False
    return abs(places[0][1] - places[1][1]) <= _APART


def sanitizer(text: str) -> tuple[Status, str]:
    """(status, text) from compute-sanitizer's summary. Without a summary it failed."""
    if "Device not supported" in text:
        return Status.NOT_APPLICABLE, "compute-sanitizer does not support this device here"
    summaries = [(int(number), what) for _, number, what in _SUMMARY.findall(text)]
    if not summaries:
        return Status.FAILED, "compute-sanitizer printed no summary"
    number = sum(count for count, _ in summaries)
    reports = [report[1] for report in _REPORT.finditer(text)]
    known = sum(hands_over_a_tile(report) for report in reports)
    if known and known == number:
        return Status.OK, f"{number} reported, each the hand-over of a tile by named barriers, which it misjudges"
    text = f"{number} {summaries[0][1]}{'s' if number != 1 else ''}"
    text += f", {known} of them the hand-over of a tile by named barriers (docs/gpu.md)" if known else ""
    return (Status.OK if number == 0 else Status.WRONG), text


READERS: Mapping[str, Callable[[Ended, Path], Verdict]] = {
    "exit": _exit,
    "doctor": _doctor,
    "expected-faults": _expected_faults,
    "selftest": _selftest,
    "pytest": _pytest,
    "bench": _bench,
}
