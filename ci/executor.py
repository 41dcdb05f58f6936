"""Runs compile jobs side by side within cores and memory, tells how far it is, and stops all at the first failure.

Our own and not ninja: ninja counts jobs, and two backward units beside each other need 14 GB where two of the others
need 5. What may start is decided by `schedule.next_unit`, from the memory that the machine really has free at the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
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
    poll_seconds: float = MEMORY_POLL_SECONDS

    def run(self, jobs: Sequence[Job]) -> None:
        """Run all jobs, the longest first. The first failure stops the others and is raised."""
        waiting = sorted(jobs, key=lambda job: (-job.cpu_s, job.name))
        running: dict[Future[str], Job] = {}
        progress = _Progress(count=len(jobs), total_s=sum(job.cpu_s for job in jobs), narrate=self.narrate)
        with ThreadPoolExecutor(max_workers=self.limit, thread_name_prefix="compile") as pool:
            try:
                while waiting or running:
                    index = self._choose(waiting, list(running.values()))
                    if index is not None:
                        job = waiting.pop(index)
                        running[pool.submit(job.action)] = job
                        continue
                    # Where it is memory that keeps the next one waiting, look again soon.
                    timeout = self.poll_seconds if waiting and len(running) < self.limit else None
                    done, _ = wait(running, timeout=timeout, return_when=FIRST_COMPLETED)
                    for future in done:
                        progress.finished(running.pop(future), future.result())
            except BaseException:
                self.children.stop()
                raise

    def _choose(self, waiting: Sequence[Job], running: Sequence[Job]) -> int | None:
        if not waiting or len(running) >= self.limit:
            return None
        needs = [job.need_gb for job in running]
        available, held = self.memory(self.children.sessions())
        # What the running compilers will still take is spoken for already.
        free = available - max(0.0, sum(needs) - held)
        return next_unit([job.need_gb for job in waiting], running=needs, limit=self.limit, free_gb=free)


@dataclass(kw_only=True)
class _Progress:
    """Counts, and the time left from how long the estimated work so far has really taken."""

    count: int
    total_s: float
    narrate: Narrator
    done: int = 0
    done_s: float = 0.0
    begun: float = field(default_factory=time.monotonic)

    def finished(self, job: Job, line: str) -> None:
        self.done += 1
        self.done_s += job.cpu_s
        left = eta(self.done_s, self.total_s, elapsed=time.monotonic() - self.begun)
        self.narrate.note(f"[{self.done}/{self.count}] {line}" + (f", about {left} left" if left else ""))


def eta(done_s: float, total_s: float, *, elapsed: float) -> str:
    """The time left as text; empty at the beginning and at the end."""
    if done_s <= 0 or done_s >= total_s:
        return ""
    return format_seconds(elapsed * (total_s - done_s) / done_s)
