"""Peak memory of one call beyond its inputs, as torch's allocator reports it: results and scratch."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Discard what the profiler's native code writes to the process's stdout and stderr."""
    saved = []
    with Path(os.devnull).open("wb") as sink:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number in (1, 2):
            saved.append((number, os.dup(number)))
            os.dup2(sink.fileno(), number)
        try:
            yield
        finally:
            for number, copy in saved:
                os.dup2(copy, number)
                os.close(copy)


def peak_from_trace(text: str) -> int:
    """The high-water mark of the allocator's events in a chrome trace, over what was there at its start."""
    events = [event for event in json.loads(text)["traceEvents"] if event.get("name") == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def _cpu_peak(call: Callable[[], object]) -> int:
    from torch.profiler import ProfilerActivity, profile

    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        with _quiet_stderr():
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
                kept = call()  # results count as long as a caller would hold them
                del kept
            profiler.export_chrome_trace(str(trace))
        return peak_from_trace(trace.read_text(encoding="utf-8"))


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes at the peak of a call; None where torch does not report them (MPS).

    Run the call once before, so that caches which are filled once are not counted.
    """
    if device.type == "cpu":
        return _cpu_peak(call)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        kept = call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        del kept
        return peak
    return None
