"""Answers under way, and those that are finished and may still be asked for. A reader may come, go and come again."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from .ending import Ending
from .pool import Pool, Ticket
from .process import Job
from .serving import line

TELL_EVERY = 0.25  # how often a waiting page may hear something new
KEEP_ALIVE = 10.0
KEPT_FOR = 900.0  # a finished answer
KEPT_MANY = 500
Event = dict[str, Any]


class Answer:
    """One answer: made by a task of its own, read by as many as want to, each from its beginning."""

    def __init__(self, pool: Pool, ticket: Ticket, order: Mapping[str, Any], *, name: str | None, keep: bool) -> None:
        self.pool, self.ticket, self.order, self.keep = pool, ticket, order, keep
        self.name = name or secrets.token_hex(8)
        self.over: float | None = None  # when
        self._events: list[Event] = [{"id": self.name, "model": ticket.checkpoint.key}]
        self._status: Event | None = None  # of the wait; only the newest counts
        self._stopped = asyncio.Event()
        self._news = asyncio.Event()

    def stop(self) -> None:
        self._stopped.set()

    async def read(self) -> AsyncGenerator[Event, None]:
        """Who answers, how the wait goes, tokens, one last event. An answer that is not kept ends with its reader."""
        at, told = 0, None
        try:
            while True:
                news = self._news
                while at < len(self._events):
                    yield self._events[at]
                    at += 1
                if self.over is not None:
                    return
                if self._status is not None and self._status is not told:
                    told = self._status
                    yield told
                    continue
                await news.wait()
        finally:
            if not self.keep:
                self.stop()

    def _say(self, *events: Event, status: Event | None = None) -> None:
        self._events += events
        self._status = status
        self._news.set()
        self._news = asyncio.Event()

    async def make(self) -> None:
        """Wait for a place, have the tokens made, and give everything back, however it ends."""
        job: Job | None = None
        try:
            await self._wait()
            worker = self.ticket.worker
            if self.ticket.ending is not None:
                self._say(self.ticket.ending.to_json())
            elif self._stopped.is_set() or worker is None:
                self._say({"done": True, "stopped": True})
            else:
                self.ticket.worker = None  # the lease is the job's from here on
                job = worker.submit(self.name, self.order)
                if worker.ready is not None:
                    serving = line(worker.ready["attention"], worker.ready["device"], worker.ready["decoding"])
                    self._say({"serving": serving.to_json()})
                await self._take(job)
        finally:
            self.pool.withdraw(self.ticket)
            if job is not None:
                job.worker.abandon(job)
            self.over = time.monotonic()
            self._say()

    async def _wait(self) -> None:
        spoken = time.monotonic()
        settled = asyncio.ensure_future(self.ticket.settled.wait())
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            while not (settled.done() or stopped.done()):
                status = self.pool.status(self.ticket)
                if status != self._status or time.monotonic() - spoken > KEEP_ALIVE:
                    spoken = time.monotonic()
                    self._say(status=status)
                await asyncio.wait((settled, stopped), timeout=TELL_EVERY, return_when=asyncio.FIRST_COMPLETED)
        finally:
            settled.cancel()
            stopped.cancel()

    async def _take(self, job: Job) -> None:
        """Ends at once when stopped: the process is told, and need not have answered."""
        source = job.read()
        stopped = asyncio.ensure_future(self._stopped.wait())
        coming: asyncio.Future[Any] | None = None
        try:
            while True:
                coming = asyncio.ensure_future(anext(source))
                await asyncio.wait((coming, stopped), return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    self._say({"done": True, "stopped": True})
                    return
                event = coming.result()
                self._say(*translate(event))
                if isinstance(event, Ending) or event["event"] in ("done", "failed"):
                    return
        finally:
            stopped.cancel()
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
            await source.aclose()


class Answers:
    """All of them, by name."""

    def __init__(self) -> None:
        self.by_name: dict[str, Answer] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, answer: Answer) -> None:
        self._forget()
        self.by_name[answer.name] = answer
        task = asyncio.ensure_future(answer.make())
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._finished(answer, done))

    def under_way(self) -> int:
        return sum(answer.over is None for answer in self.by_name.values())

    async def close(self) -> None:
        """After the pool was closed: every answer has been told its end."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)

    def _finished(self, answer: Answer, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not answer.keep:
            self.by_name.pop(answer.name, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error  # our own mistake: asyncio writes it down

    def _forget(self) -> None:
        now = time.monotonic()
        finished = sorted(
            (answer for answer in self.by_name.values() if answer.over is not None), key=lambda one: one.over or 0.0
        )
        for at, answer in enumerate(finished):
            if now - (answer.over or now) > KEPT_FOR or at < len(finished) - KEPT_MANY:
                del self.by_name[answer.name]


def translate(event: dict[str, Any] | Ending) -> list[dict[str, Any]]:
    """An event of the model process as the page, or a client of nanochat's own server, gets it."""
    if isinstance(event, Ending):
        return [event.to_json()]
    kind, text = event["event"], event.get("text", "")
    token = [{"token": text, "gpu": 0}] if text and kind in ("token", "done") else []
    if kind == "start":
        return [{"prompt_tokens": event["prompt_tokens"], "dropped": event["dropped"]}] if event["dropped"] else []
    if kind == "failed":
        return [{"error": f"The model could not answer: {text}", "hint": "The model is still there: try again."}]
    if kind == "done":
        last = {"done": True, "tokens": event["tokens"], "seconds": event["seconds"], "reason": event["reason"]}
        return [*token, {**last, "stopped": True} if event["reason"] == "stop" else last]
    return token
