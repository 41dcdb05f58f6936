"""Runs compile jobs side by side within cores and memory, tells how far it is, and stops all at the first failure.

Our own and not ninja: ninja counts jobs, and two backward units beside each other need 14 GB where two of the others
need 5. What may start is decided by `schedule.next_unit`, from the memory that the machine really has free at the time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from ci.build.children import Children
from ci.console import Narrator, format_seconds
from ci.plan.schedule import next_unit

MEMORY_POLL_SECONDS = 2.0
# How often a person hears of compilers that are still running: in place on a terminal, as a line of its own in a log.
TERMINAL_TICK_SECONDS = 1.0
LOG_LINE_SECONDS = 60.0


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
    tick_seconds: float = TERMINAL_TICK_SECONDS  # how often it is asked whether there is something to show

    def run(self, jobs: Sequence[Job]) -> None:
        """Run all jobs. The first failure stops the others and is raised."""
        waiting = sorted(jobs, key=lambda job: (-job.cpu_s, job.name)) if self.longest_first else list(jobs)
        running: dict[Future[str], Job] = {}
        progress = _Progress(count=len(jobs), total_s=sum(job.cpu_s for job in jobs), narrate=self.narrate)
        with ThreadPoolExecutor(max_workers=self.limit, thread_name_prefix="compile") as pool:
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
    """Counts, what is running and for how long, and the time left from how long the work so far has really taken."""

    count: int
    total_s: float
    narrate: Narrator
    done: int = 0
    done_s: float = 0.0
    begun: float = field(init=False)
    _since: dict[str, float] = field(init=False, default_factory=dict)
    _shown: float = field(init=False)

    def __post_init__(self) -> None:
        self.begun = self._shown = self.narrate.clock()

    @property
    def pause(self) -> float:
        return TERMINAL_TICK_SECONDS if self.narrate.terminal else LOG_LINE_SECONDS

    def started(self, job: Job) -> None:
        self._since[job.name] = self.narrate.clock()

    def finished(self, job: Job, line: str) -> None:
        self.done += 1
        self.done_s += job.cpu_s
        del self._since[job.name]
        self._shown = now = self.narrate.clock()
        left = eta(self.done_s, self.total_s, elapsed=now - self.begun)
        self.narrate.note(f"[{self.done}/{self.count}] {line}" + (f", about {left} left" if left else ""))

    def show(self, running: Collection[Job]) -> None:
        """Say what is being compiled, if that was not said just now."""
        now = self.narrate.clock()
        if not running or now - self._shown < self.pause:
            return
        self._shown = now
        names = ", ".join(f"{job.name} ({format_seconds(now - self._since[job.name])})" for job in running)
        left = eta(self.done_s, self.total_s, elapsed=now - self.begun)
        self.narrate.redraw(f"[{self.done}/{self.count}] compiling {names}" + (f", about {left} left" if left else ""))


def eta(done_s: float, total_s: float, *, elapsed: float) -> str:
    """The time left as text; empty at the beginning and at the end."""
    if done_s <= 0 or done_s >= total_s:
        return ""
    return format_seconds(elapsed * (total_s - done_s) / done_s)
