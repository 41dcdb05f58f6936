"""The models in memory and the line of chats that wait for them. turns.py decides; this carries it out (`_pump`)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .checkout import Checkout
from .checkpoints import Checkpoint
from .ending import Ending
from .process import Worker
from .turns import Held, Wait, decide

SWEEP = 2.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the machine is asked to bear. Seconds where a name ends in none."""

    models: int = 2
    slots: int = 32
    queue: int = 64
    idle: float = 900.0
    silence: float = 120.0
    loading: float = 600.0
    decode: Literal["batch", "one-by-one"] = "batch"


class Busy(Exception):
    """Too many wait already."""

    def __init__(self, ahead: int) -> None:
        waiting = f": {ahead} messages are waiting ahead of yours" if ahead else ": every place is taken"
        super().__init__(f"the server is busy{waiting}")
        self.ahead = ahead


class Ticket:
    """A place in the line for one model."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.worker: Worker | None = None  # granted: a lease on it is held
        self.ending: Ending | None = None
        self.settled = asyncio.Event()
        self.wait: Wait | None = None  # as of the last decision


class Pool:
    """All model processes of the server."""

    def __init__(self, checkout: Checkout, limits: Limits, *, device: str | None = None) -> None:
        self.checkout, self.limits, self.device = checkout, limits, device
        self.workers: dict[str, Worker] = {}
        self.leaving: set[Worker] = set()
        self.tickets: list[Ticket] = []
        self.set_aside: Mapping[str, str] = {}
        self.served = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    # -- the line

    def queue_up(self, checkpoint: Checkpoint) -> Ticket:
        """A ticket; raises Busy where the line is full. What can start at once is never refused."""
        ticket = Ticket(checkpoint)
        self.tickets.append(ticket)
        self._pump()
        if ticket in self.tickets and self._waiting() > self.limits.queue:
            ahead = len(self.tickets) - 1
            self.tickets.remove(ticket)
            raise Busy(ahead)
        return ticket

    def _waiting(self) -> int:
        """Tickets beyond what the loading models will take at once when they are ready."""
        soon = {key: self.limits.slots - worker.leases for key, worker in self.workers.items() if worker.ready is None}
        waiting = 0
        for ticket in self.tickets:
            if soon.get(ticket.checkpoint.version, 0) > 0:
                soon[ticket.checkpoint.version] -= 1
            else:
                waiting += 1
        return waiting

    def withdraw(self, ticket: Ticket) -> None:
        """The reader has gone. A lease that was granted and not used is given back."""
        if ticket in self.tickets:
            self.tickets.remove(ticket)
            self._pump()
        elif ticket.worker is not None:
            ticket.worker.release()
            ticket.worker = None

    def status(self, ticket: Ticket) -> dict[str, Any]:
        """What a waiting page is told: what the chat waits for, and how many are served before it."""
        worker = self.workers.get(ticket.checkpoint.version)
        wait = ticket.wait
        ahead = 0 if wait is None else wait.ahead
        if worker is not None and worker.ready is None:
            seconds = int(time.monotonic() - worker.since)
            return {"status": "loading", "stage": worker.stage, "seconds": seconds, "ahead": ahead}
        told = {"status": "queued", "for": "place", "model": ticket.checkpoint.tag, "ahead": ahead}
        if wait is None or wait.reason != "room":
            return told
        leaving = self.workers.get(wait.on) if wait.on is not None else None
        on = None if leaving is None else {"model": leaving.checkpoint.tag, "chats": leaving.leases}
        return {**told, "for": "room", "on": on}

    def _pump(self) -> None:
        if self._closing:
            return
        for key, worker in list(self.workers.items()):
            if worker.ending is not None:
                del self.workers[key]
                self._fail(key, worker.ending)
        line = list(self.tickets)
        decision = decide(
            [ticket.checkpoint.version for ticket in line],
            {
                key: Held(ready=worker.ready is not None, chats=worker.leases, used=worker.used)
                for key, worker in self.workers.items()
            },
            self.set_aside,
            models=self.limits.models,
            slots=self.limits.slots,
        )
        self.set_aside = decision.set_aside
        for position, ticket in enumerate(line):
            ticket.wait = decision.waits.get(position)
        for position in decision.start:
            self._grant(line[position])
        by_key = {ticket.checkpoint.version: ticket.checkpoint for ticket in line}
        for key, victim in decision.load.items():
            self._launch(by_key[key], None if victim is None else self.workers[victim])

    def _grant(self, ticket: Ticket) -> None:
        worker = self.workers[ticket.checkpoint.version]
        self.tickets.remove(ticket)
        worker.leases += 1
        self.served += 1
        ticket.worker = worker
        ticket.settled.set()

    def _fail(self, key: str, ending: Ending) -> None:
        for ticket in [ticket for ticket in self.tickets if ticket.checkpoint.version == key]:
            self.tickets.remove(ticket)
            ticket.ending = ending
            ticket.settled.set()

    # -- the processes

    def _launch(self, checkpoint: Checkpoint, victim: Worker | None) -> None:
        worker = Worker(checkpoint, silence=self.limits.silence, loading=self.limits.loading, changed=self._pump)
        if victim is not None:
            self._unload(victim, f"Unloaded to make room for {checkpoint.name}")
        self.workers[checkpoint.version] = worker
        self._spawn(self._start(worker))

    async def _start(self, worker: Worker) -> None:
        # The memory of those that leave is needed first.
        await asyncio.gather(*(other.gone() for other in self.leaving))
        if worker.ending is None:
            await worker.start(
                self.checkout.worker_command(worker.checkpoint, self.device, self.limits.decode),
                cwd=self.checkout.root,
                env=self.checkout.environment(worker.checkpoint, os.environ),
            )

    def _unload(self, worker: Worker, reason: str) -> None:
        self.workers.pop(worker.checkpoint.version, None)
        self.leaving.add(worker)
        self._spawn(self._end(worker, reason))

    async def _end(self, worker: Worker, reason: str) -> None:
        await worker.unload(reason)
        self.leaving.discard(worker)
        self._pump()

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def sweep(self) -> None:
        """Runs beside everything and unloads what nobody uses."""
        while True:
            await asyncio.sleep(min(SWEEP, self.limits.idle))
            now = time.monotonic()
            for worker in list(self.workers.values()):
                if worker.ready is not None and worker.leases == 0 and now - worker.used > self.limits.idle:
                    self._unload(worker, "Unloaded: nobody had used it for a while")

    async def close(self) -> None:
        """End every process, and wait for that."""
        self._closing = True
        workers = [*self.workers.values(), *self.leaving]
        for ticket in self.tickets:
            ticket.ending = Ending(what="The server was stopped", hint="Start it again in its terminal.", log=())
            ticket.settled.set()
        self.tickets.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*(worker.unload("The server was stopped") for worker in workers))

    def describe(self) -> Mapping[str, Any]:
        """For /health and /stats."""
        return {
            "models": [
                {
                    "id": worker.checkpoint.key,
                    "state": "loading" if worker.ready is None else "ready",
                    "stage": worker.stage,
                    "pid": worker.pid,
                    "chats": worker.leases,
                    "slots": self.limits.slots,
                    "idle_seconds": round(time.monotonic() - worker.used, 1) if worker.leases == 0 else 0.0,
                }
                for worker in self.workers.values()
            ],
            "waiting": len(self.tickets),
            "served": self.served,
        }
