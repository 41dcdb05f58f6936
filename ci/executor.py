"""Runs compile jobs side by side within cores and memory, tells how far it is, and stops everything at the first failure.

Our own and not ninja: ninja counts jobs, and two backward units beside each other need 14 GB where two of the others
need 5. What may start is decided by `schedule.next_unit`, from the memory that the machine really has free at the time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ci.children import Children
from ci.narrate import Narrator, format_seconds
from ci.schedule import next_unit

MEMORY_POLL_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One unit to compile: its estimated cost, and the action that does it and returns a line for people."""

    name: str
    cpu_s: float
    need_gb: float
    action: Callable[[], str]


@dataclass(kw_only=True)
class Executor:
    """`memory` gives (GB available now, GB that the given sessions hold); tests pass a function of their own."""

    limit: int
    memory: Callable[[frozenset[int]], tuple[float, float]]
    narrate: Narrator
    children: Children = field(default_factory=Children)
    _change: threading.Condition = field(init=False, default_factory=threading.Condition)
    _running: dict[str, Job] = field(init=False, default_factory=dict)
    _failed: list[BaseException] = field(init=False, default_factory=list)
    _done_s: float = field(init=False, default=0.0)
    _done: int = field(init=False, default=0)

    def run(self, jobs: Sequence[Job]) -> None:
        """Run all jobs, the longest first. The first failure stops the others and is raised."""
        waiting = sorted(jobs, key=lambda job: (-job.cpu_s, job.name))
        total_s, begun = sum(job.cpu_s for job in jobs), time.monotonic()
        threads: list[threading.Thread] = []
        try:
            with self._change:
                while (waiting or self._running) and not self._failed:
                    index = self._choose(waiting)
                    if index is None:
                        self._change.wait(MEMORY_POLL_SECONDS)
                        continue
                    job = waiting.pop(index)
                    self._running[job.name] = job
                    thread = threading.Thread(target=self._work, args=(job, len(jobs), total_s, begun), name=job.name)
                    threads.append(thread)
                    thread.start()
        finally:
            if self._running:
                self.children.stop()
            for thread in threads:
                thread.join()
        if self._failed:
            raise self._failed[0]

    def _choose(self, waiting: Sequence[Job]) -> int | None:
        if not waiting or len(self._running) >= self.limit:
            return None
        needs = [job.need_gb for job in self._running.values()]
        available, held = self.memory(self.children.sessions())
        # What the running compilers will still take is spoken for already.
        free = available - max(0.0, sum(needs) - held)
        return next_unit([job.need_gb for job in waiting], running=needs, limit=self.limit, free_gb=free)

    def _work(self, job: Job, count: int, total_s: float, begun: float) -> None:
        try:
            line = job.action()
        except BaseException as error:  # handed to the thread that called run()
            with self._change:
                self._failed.append(error)
                del self._running[job.name]
                self._change.notify_all()
            return
        with self._change:
            del self._running[job.name]
            self._done += 1
            self._done_s += job.cpu_s
            left = eta(self._done_s, total_s, elapsed=time.monotonic() - begun)
            self.narrate.note(f"[{self._done}/{count}] {line}" + (f", about {left} left" if left else ""))
            self._change.notify_all()


def eta(done_s: float, total_s: float, *, elapsed: float) -> str:
    """Time left, from how long the estimated work so far has really taken; empty at the end."""
    if done_s <= 0 or done_s >= total_s:
        return ""
    return format_seconds(elapsed * (total_s - done_s) / done_s)
