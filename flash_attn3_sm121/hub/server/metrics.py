"""Counters in Prometheus' text format, summed over all workers.

The counters live in one anonymous shared mapping that is made before the workers are forked: each worker writes its own
row, whoever is scraped adds the rows up.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ROUTES = (
    "page",
    "asset",
    "simple_list",
    "simple_project",
    "wheel",
    "repo_info",
    "repo_list",
    "tree",
    "refs",
    "resolve",
    "organization",
    "repo_page",
    "repo_alias",
    "healthz",
    "metrics",
    "other",
)
CODES = (200, 206, 301, 302, 304, 400, 401, 404, 405, 409, 410, 412, 416, 431, 500, 503)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "flash_attn3_hub"
_PER_ROUTE = len(CODES) + 1 + 2  # one a code, one for any other code, bytes, seconds
_IN_FLIGHT = len(ROUTES) * _PER_ROUTE
_DROPPED = _IN_FLIGHT + 1
_CELLS = _DROPPED + 1


@dataclass(frozen=True, kw_only=True)
class Gauges:
    """What is read at the time of a scrape."""

    generation: int
    wheels: int
    repositories: int
    stale: bool
    version: str


class Metrics:
    """One row of counters for each worker. `for_worker` gives the view that a worker writes through."""

    def __init__(self, workers: int = 1, *, _cells: memoryview[Any] | None = None, _row: int = 0) -> None:
        self.workers = workers
        self._cells = memoryview(mmap.mmap(-1, workers * _CELLS * 8)).cast("d") if _cells is None else _cells
        self._base = _row * _CELLS

    def for_worker(self, row: int) -> Metrics:
        return Metrics(self.workers, _cells=self._cells, _row=row)

    def _add(self, cell: int, value: float) -> None:
        self._cells[self._base + cell] += value

    def _sum(self, cell: int) -> float:
        return float(sum(self._cells[row * _CELLS + cell] for row in range(self.workers)))

    def reset_row(self) -> None:
        """A worker that died takes its requests in flight with it; its counts stay, as counters never go back."""
        self._cells[self._base + _IN_FLIGHT] = 0.0

    def started(self) -> None:
        self._add(_IN_FLIGHT, 1)

    def finished(self, route: str, code: int, *, sent: int, seconds: float) -> None:
        base = (ROUTES.index(route) if route in ROUTES else len(ROUTES) - 1) * _PER_ROUTE
        self._add(_IN_FLIGHT, -1)
        self._add(base + (CODES.index(code) if code in CODES else len(CODES)), 1)
        self._add(base + len(CODES) + 1, sent)
        self._add(base + len(CODES) + 2, seconds)

    def dropped(self) -> None:
        """A client went away, or was too slow, before its answer was complete."""
        self._add(_IN_FLIGHT, -1)
        self._add(_DROPPED, 1)

    def render(self, gauges: Gauges) -> str:
        return "\n".join(self._lines(gauges)) + "\n"

    def _lines(self, gauges: Gauges) -> Iterator[str]:
        yield from _head("requests_total", "counter", "Answered requests by route and status.")
        for number, route in enumerate(ROUTES):
            for place, code in enumerate((*CODES, "other")):
                if value := self._sum(number * _PER_ROUTE + place):
                    yield f'{_PREFIX}_requests_total{{route="{route}",code="{code}"}} {value:.0f}'
        yield from _head("response_bytes_total", "counter", "Body bytes of complete answers by route.")
        for number, route in enumerate(ROUTES):
            yield f'{_PREFIX}_response_bytes_total{{route="{route}"}} {self._sum((number + 1) * _PER_ROUTE - 2):.0f}'
        yield from _head("request_seconds_total", "counter", "Time spent on complete answers by route.")
        for number, route in enumerate(ROUTES):
            yield f'{_PREFIX}_request_seconds_total{{route="{route}"}} {self._sum((number + 1) * _PER_ROUTE - 1):.6f}'
        for name, kind, text, value in (
            ("dropped_total", "counter", "Answers that the client did not take to the end.", self._sum(_DROPPED)),
            ("requests_in_flight", "gauge", "Requests being answered now.", self._sum(_IN_FLIGHT)),
            ("generation", "gauge", "The hub's generation that is served.", gauges.generation),
            ("wheels", "gauge", "Wheels in the index.", gauges.wheels),
            ("repositories", "gauge", "Kernel repositories in the index.", gauges.repositories),
            ("stale", "gauge", "1 while the newest generation cannot be read.", int(gauges.stale)),
            ("workers", "gauge", "Worker processes.", self.workers),
        ):
            yield from _head(name, kind, text)
            yield f"{_PREFIX}_{name} {value:.0f}"
        yield from _head("build_info", "gauge", "The version of the server.")
        yield f'{_PREFIX}_build_info{{version="{gauges.version}"}} 1'


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {_PREFIX}_{name} {text}"
    yield f"# TYPE {_PREFIX}_{name} {kind}"
