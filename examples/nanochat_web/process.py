"""One model process: started, listened to, given chats, and buried with a message when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .checkpoints import Checkpoint
from .ending import Ending, ending_of

MAX_EVENT = 1 << 20
STDERR_LINES = 200
GRACE = 5.0

Event = dict[str, Any]


class Job:
    """One reply: its events in order. There are at most as many as tokens were asked for."""

    def __init__(self, worker: Worker, name: str) -> None:
        self.worker, self.name = worker, name
        self.events: asyncio.Queue[Event | Ending] = asyncio.Queue()
        self.over = False

    async def read(self) -> AsyncGenerator[Event | Ending, None]:
        """Ends after `done`, `failed` or an Ending. A process that says nothing for too long is ended for it."""
        while True:
            if not self.events.empty():
                event = self.events.get_nowait()
            else:
                try:
                    event = await asyncio.wait_for(self.events.get(), self.worker.silence)
                except asyncio.TimeoutError:
                    text = f"The model said nothing for {self.worker.silence:g} s, so its process was ended"
                    await self.worker.kill(text)
                    event = await self.events.get()
            yield event
            if isinstance(event, Ending) or event["event"] in ("done", "failed"):
                return

    def stop(self) -> None:
        """Ask for the end. The process confirms with `done`, which frees the place."""
        if not self.over:
            self.worker.tell(op="stop", id=self.name)


class Worker:
    """A process with one model. `changed` is called whenever a place may have become free, or it ended."""

    def __init__(self, checkpoint: Checkpoint, *, silence: float, loading: float, changed: Callable[[], None]) -> None:
        self.checkpoint, self.silence, self.loading, self.changed = checkpoint, silence, loading, changed
        self.stage = "waiting for memory"
        self.since = time.monotonic()
        self.used = self.since
        self.ready: Event | None = None
        self.ending: Ending | None = None
        self.leases = 0
        self.jobs: dict[str, Job] = {}
        self.log: deque[str] = deque(maxlen=STDERR_LINES)
        self._fatal: str | None = None
        self._reason: str | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> None:
        self.stage, self.since = "starting", time.monotonic()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=cwd,
                env=dict(env),
                limit=MAX_EVENT,
                start_new_session=True,  # a Ctrl-C in the terminal is the server's to handle
            )
        except OSError as error:
            self._end(Ending(what=f"{command[0]} could not be started: {error.strerror}", hint=str(cwd), log=()))
            return
        assert self._process.stdout is not None and self._process.stderr is not None
        reading = [
            self._spawn(self._read_events(self._process.stdout)),
            self._spawn(self._read_log(self._process.stderr)),
        ]
        self._spawn(self._watch(self._process, reading))
        self._spawn(self._hurry())
        if self._reason is not None:  # ended while it was starting
            self._signal(signal.SIGKILL)

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- what comes out

    async def _read_events(self, stream: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # longer than MAX_EVENT: not ours
                await self.kill("The model process wrote a line that is too long")
                return
            if not line:
                return
            try:
                event = json.loads(line)
                kind = event["event"]
            except (json.JSONDecodeError, KeyError, TypeError):
                await self.kill(f"The model process wrote something that is no event: {line[:80]!r}")
                return
            self._take(kind, event)

    def _take(self, kind: str, event: Event) -> None:
        if kind == "stage":
            self.stage, self.since = event["text"], time.monotonic()
            self.changed()
        elif kind == "ready":
            self.ready, self.stage, self.used = event, "answering", time.monotonic()
            self.changed()
        elif kind == "attention" and self.ready is not None:
            self.ready["attention"] = event
        elif kind == "fatal":
            self._fatal = event["text"]
        elif (job := self.jobs.get(event.get("id", ""))) is not None:
            if kind in ("done", "failed"):
                self._close(job)
            job.events.put_nowait(event)

    async def _read_log(self, stream: asyncio.StreamReader) -> None:
        held = b""
        while chunk := await stream.read(1 << 14):
            *lines, held = (held + chunk).replace(b"\r", b"\n").split(b"\n")
            held = held[-4096:]
            self.log.extend(text for line in lines if (text := line.decode("utf-8", "replace").rstrip()))
        if held.strip():
            self.log.append(held.decode("utf-8", "replace").rstrip())

    async def _watch(self, process: asyncio.subprocess.Process, reading: Sequence[asyncio.Task[None]]) -> None:
        code = await process.wait()
        # Its last lines come before its Ending; a grandchild that keeps the pipes open must not keep us.
        await asyncio.wait(reading, timeout=GRACE)
        self._end(
            ending_of(
                code=code,
                name=self.checkpoint.name,
                stage=self.stage,
                fatal=self._fatal,
                log=tuple(self.log),
                reason=self._reason,
            )
        )

    async def _hurry(self) -> None:
        """Ends a process that stays in one stage of loading for too long."""
        while self.ready is None and self.ending is None:
            left = self.since + self.loading - time.monotonic()
            if left <= 0:
                await self.kill(f"The model was not ready {self.loading:g} s after its last sign of progress")
                return
            await asyncio.sleep(min(left, 1.0))

    def _end(self, ending: Ending) -> None:
        self.ending = ending
        for job in list(self.jobs.values()):
            self._close(job)
            job.events.put_nowait(ending)
        self._ended.set()
        self.changed()

    # -- what goes in

    def tell(self, **order: Any) -> None:
        process = self._process
        if process is not None and process.stdin is not None and self.ending is None:
            # To a dead process this raises nothing; its end is told by _watch.
            process.stdin.write(json.dumps(order).encode() + b"\n")

    def submit(self, name: str, order: Mapping[str, Any]) -> Job:
        """A new chat. The caller has a lease; `over` gives it back."""
        job = self.jobs[name] = Job(self, name)
        self.used = time.monotonic()
        self.tell(op="generate", id=name, **order)
        if self.ending is not None:
            self._close(job)
            job.events.put_nowait(self.ending)
        return job

    def _close(self, job: Job) -> None:
        if not job.over:
            job.over = True
            del self.jobs[job.name]
            self.release()

    def release(self) -> None:
        self.leases -= 1
        self.used = time.monotonic()
        self.changed()

    def abandon(self, job: Job) -> None:
        """Nobody reads this job any more: stop it, and end a process that does not confirm."""
        job.stop()
        if not job.over:
            self._spawn(self._confirm(job))

    async def _confirm(self, job: Job) -> None:
        deadline = time.monotonic() + self.silence
        while not job.over:
            if time.monotonic() > deadline:
                await self.kill(f"The model did not stop within {self.silence:g} s, so its process was ended")
                return
            await asyncio.sleep(0.05)

    # -- the end

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def kill(self, reason: str) -> None:
        """End it at once, and wait until it is gone."""
        if self._reason is None:
            self._reason = reason
        self._signal(signal.SIGKILL)
        await self.gone()

    async def gone(self) -> None:
        await self._ended.wait()

    async def unload(self, reason: str) -> None:
        """End it when nothing is asked of it: its memory is free afterwards."""
        if self._process is None and self.ending is None:  # not even started
            self._reason = reason
            self._end(Ending(what=reason, hint="", log=()))
            return
        await self.kill(reason)
