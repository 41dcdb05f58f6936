"""nanochat's evaluation scripts in the background: one at a time, the others wait; each may be called off."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from . import tasks
from .checkout import Checkout, as_typed
from .checkpoints import Checkpoint
from .ending import how_it_ended, remedy
from .runs import Run, State, Store, new_id
from .tasks import BY_NAME, TASKS, Script, Task

CHILD = Path(__file__).with_name("child.py")
GRACE = 5.0
MAX_LOG = 32 << 20
MAX_QUEUED = 20


class Refused(Exception):
    """This evaluation cannot be run; the message says why."""


class Evaluations:
    """All runs, the newest last."""

    def __init__(self, checkout: Checkout, store: Store, *, device: str | None = None) -> None:
        self.checkout, self.store, self.device = checkout, store, device
        self.runs = store.load()
        self._orders: dict[str, tuple[Task, Checkpoint]] = {}
        self._wake = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._cancelled: set[str] = set()

    # -- what can be asked

    def script(self, task: Task) -> Script | None:
        try:
            text = (self.checkout.root / "scripts" / f"{task.script}.py").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None
        return Script(name=task.script, text=text)

    def offers(self, checkpoint: Checkpoint) -> list[dict[str, Any]]:
        """Every task of this kind of model, with the reason where it cannot be run."""
        return [
            {
                "name": task.name,
                "about": task.about,
                "size": task.size,
                "data": {"name": task.data, "place": str(self.place(task)), "there": self.place(task).exists()},
                "refusal": tasks.refusal(task, self.script(task), checkpoint),
            }
            for task in TASKS
            if task.style == checkpoint.source.style
        ]

    def place(self, task: Task) -> Path:
        """Where this checkout looks for the data of a task."""
        try:
            common = (self.checkout.root / "tasks" / "common.py").read_text(encoding="utf-8", errors="replace")
        except OSError:
            common = ""
        own = "task_data" in common
        return tasks.data_place(task, base=self.checkout.base, own_downloads=own, environ=os.environ)

    def add(self, checkpoint: Checkpoint, name: str, limit: int | None) -> Run:
        task = BY_NAME.get(name)
        if task is None:
            raise Refused(f"there is no task {name!r}; there are {', '.join(BY_NAME)}")
        if checkpoint.problem is not None:
            raise Refused(f"{checkpoint.name} cannot be loaded: {checkpoint.problem}")
        script = self.script(task)
        reason = tasks.refusal(task, script, checkpoint)
        if reason is not None or script is None:
            raise Refused(str(reason))
        if sum(not run.over for run in self.runs.values()) >= MAX_QUEUED:
            raise Refused(f"{MAX_QUEUED} evaluations are waiting already")
        command = (str(self.checkout.python), *tasks.arguments(task, script, checkpoint, limit))
        if self.device:
            command = (*command, "--device-type", self.device)
        run = Run(
            id=new_id(),
            model=checkpoint.key,
            name=checkpoint.name,
            task=task.name,
            limit=limit,
            state="queued",
            created=time.time(),
            command=as_typed(command),
            progress=tasks.start(task, limit),
        )
        try:
            self._put(run)
        except OSError as error:
            del self.runs[run.id]
            raise Refused(f"it cannot be written to {self.store.folder}: {error.strerror}") from error
        self._orders[run.id] = (task, checkpoint)
        self._wake.set()
        return run

    def cancel(self, run: Run) -> None:
        if run.state == "queued":
            self._put(replace(run, state="cancelled", ended=time.time()))
        elif run.state == "running":
            self._cancelled.add(run.id)
            self._signal(signal.SIGTERM)

    def delete(self, run: Run) -> None:
        if not run.over:
            raise Refused("it is still under way: cancel it first")
        del self.runs[run.id]
        self.store.delete(run)

    def _put(self, run: Run) -> None:
        self.runs[run.id] = run
        self.store.save(run)

    # -- the work

    async def work(self) -> None:
        """Runs beside the server, for ever."""
        while True:
            waiting = next((run for run in self.runs.values() if run.state == "queued"), None)
            if waiting is None:
                self._wake.clear()
                await self._wake.wait()
                continue
            try:
                await self._run(waiting)
            except OSError as error:  # the disk is full, or the folder is gone: the others have their turn all the same
                self._cancelled.discard(waiting.id)
                with contextlib.suppress(OSError):
                    self._finish(self.runs[waiting.id], "failed", f"What it wrote could not be kept: {error}")

    async def _run(self, run: Run) -> None:
        task, checkpoint = self._orders.pop(run.id)
        script = self.script(task)
        if script is None:
            self._finish(run, "failed", f"scripts/{task.script}.py is gone from the checkout")
            return
        arguments = tasks.arguments(task, script, checkpoint, run.limit)
        device = ("--device-type", self.device) if self.device else ()
        run = replace(run, state="running", started=time.time())
        self._put(run)
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(CHILD),
                str(self.store.running),
                str(self.checkout.python),
                *arguments,
                *device,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                cwd=self.checkout.root,
                env=self.checkout.environment(checkpoint, os.environ),
                start_new_session=True,
            )
        except OSError as error:
            self._finish(run, "failed", f"{self.checkout.python} does not start: {error.strerror}")
            return
        try:
            if run.id in self._cancelled:  # while it was being started
                self._signal(signal.SIGTERM)
            with self.store.log(run).open("wb") as log:
                log.write(f"$ cd {self.checkout.root}\n$ {run.command}\n".encode())
                run = await self._follow(run, self._process, log)
            code = await self._process.wait()
        finally:
            await self._end()
        if run.id in self._cancelled:
            self._cancelled.discard(run.id)
            self._finish(run, "cancelled", "")
        elif code != 0:
            self._finish(run, "failed", self._why(run, task, code))
        elif run.progress.result is None:
            self._finish(run, "failed", "The script ended well but printed no result that this page knows.")
        else:
            self._finish(run, "done", "")

    async def _follow(self, run: Run, process: asyncio.subprocess.Process, log: BinaryIO) -> Run:
        assert process.stdout is not None
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        held, written = "", 0
        while chunk := await process.stdout.read(1 << 14):
            if written < MAX_LOG:
                written += log.write(chunk)
                log.flush()
            lines, held = tasks.whole_lines(held, decoder.decode(chunk))
            # What stands in the unfinished line counts as well: progress is written over and over in one line.
            progress = tasks.read(run.progress, lines)
            if run.progress.unit != "core":
                progress = tasks.read(progress, [held])
            if progress != run.progress:
                run = replace(run, progress=progress)
                self._put(run)
        return replace(run, progress=tasks.read(run.progress, [held]))

    def _why(self, run: Run, task: Task, code: int) -> str:
        """How a script failed: its last line mostly says it; what to do, where that is known."""
        lines = [text for line in self.store.shown_log(run).splitlines() if (text := line.strip())]
        last = f": {lines[-1][:300]}" if lines else "."
        words = "\n".join(lines)
        hint = tasks.data_remedy(task, self.place(task), words) or remedy(words)
        return " ".join(filter(None, (f"The script ended {how_it_ended(code)}{last}", hint)))

    def _finish(self, run: Run, state: State, note: str) -> None:
        self._put(replace(run, state=state, note=note, ended=time.time()))

    # -- the end

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def _end(self) -> None:
        """Whatever made us leave, nothing of it stays behind."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(process.wait(), GRACE)
                return
