"""Runs compile jobs side by side within cores and memory, tells how far it is, and stops all at the first failure.

Our own and not ninja: ninja counts jobs, and two backward units beside each other need 14 GB where two of the others
need 5. What may start is decided by `schedule.next_unit`, from the memory that the machine really has free at the time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from ci.build.children import Children
from ci.console import Narrator, Progress, format_seconds
from ci.plan.schedule import next_unit

MEMORY_POLL_SECONDS = 2.0
TICK_SECONDS = 1.0  # between two looks at how long the running compilers have taken


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
    longest_first: bool = True  # else in the order given
    poll_seconds: float = MEMORY_POLL_SECONDS
    tick_seconds: float = TICK_SECONDS

    def run(self, jobs: Sequence[Job]) -> None:
        """Run all jobs. The first failure stops the others and is raised."""
        waiting = sorted(jobs, key=lambda job: (-job.cpu_s, job.name)) if self.longest_first else list(jobs)
        running: dict[Future[str], Job] = {}
        bar = self.narrate.progress("compile", sum(job.cpu_s for job in jobs), unit="CPU s")
        progress = _Progress(count=len(jobs), bar=bar)
        with bar, ThreadPoolExecutor(max_workers=self.limit, thread_name_prefix="compile") as pool:
            try:
                while waiting or running:
                    index = self._choose(waiting, list(running.values()))
                    if index is not None:
                        job = waiting.pop(index)
                        running[pool.submit(job.action)] = job
                        progress.started(job)
                        continue
                    # Where it is memory that keeps the next one waiting, look again soon.
                    memory = waiting and len(running) < self.limit
                    timeout = min(self.tick_seconds, self.poll_seconds) if memory else self.tick_seconds
                    done, _ = wait(running, timeout=timeout, return_when=FIRST_COMPLETED)
                    for future in done:
                        progress.finished(running.pop(future), future.result())
                    progress.show(running.values())
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
    """A line for each unit that is done, and a bar that names the running ones; its ETA is from the units' cost."""

    count: int
    bar: Progress
    done: int = 0
    _since: dict[str, float] = field(init=False, default_factory=dict)

    def started(self, job: Job) -> None:
        self._since[job.name] = self.bar.narrate.clock()

    def finished(self, job: Job, line: str) -> None:
        self.done += 1
        del self._since[job.name]
        self.bar.advance(job.cpu_s)
        left = eta(self.bar.done, self.bar.total or 0.0, elapsed=self.bar.narrate.clock() - self.bar.started)
        self.bar.narrate.note(f"[{self.done}/{self.count}] {line}" + (f", about {left} left" if left else ""))

    def show(self, running: Collection[Job]) -> None:
        """Say what is being compiled, and for how long."""
        now = self.bar.narrate.clock()
        if running:
            self.bar.tell(", ".join(f"{job.name} ({format_seconds(now - self._since[job.name])})" for job in running))


def eta(done_s: float, total_s: float, *, elapsed: float) -> str:
    """The time left as text; empty at the beginning and at the end."""
    if done_s <= 0 or done_s >= total_s:
        return ""
    return format_seconds(elapsed * (total_s - done_s) / done_s)
