"""One chat request from its body to its last event: judged, queued, streamed, stopped."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from .obituary import Obituary
from .pool import Pool, Ticket
from .process import Job
from .serving import line

# nanochat's own server has these limits; a client of one may talk to the other.
MAX_MESSAGES = 500
MAX_MESSAGE = 8000
MAX_CONVERSATION = 32000
TEMPERATURE = (0.0, 2.0)
TOP_K = (0, 200)
MAX_TOKENS = (1, 4096)
DEFAULTS = {"temperature": 0.8, "top_k": 50, "max_tokens": 512}
TELL_EVERY = 0.25  # how often a waiting page may hear something new
KEEP_ALIVE = 10.0


class Message(BaseModel):
    role: str
    content: str


class ChatBody(BaseModel):
    """The request of nanochat's own server; `model` and `seed` are ours, and may be left out."""

    messages: list[Message]
    temperature: float | None = None
    max_tokens: int | None = None
    top_k: int | None = None
    model: str | None = None
    seed: int | None = None


def _outside(name: str, value: float | None, limits: tuple[float, float]) -> str | None:
    if value is None or limits[0] <= value <= limits[1]:
        return None
    return f"{name} must be between {limits[0]} and {limits[1]}, found {value}"


def judge(body: ChatBody) -> str | None:
    """What is wrong with a request, or None."""
    if not body.messages:
        return "there is no message: at least one is needed"
    if len(body.messages) > MAX_MESSAGES:
        return f"{len(body.messages)} messages, at most {MAX_MESSAGES} are taken: start a new conversation"
    for number, message in enumerate(body.messages, start=1):
        if message.role not in ("user", "assistant"):
            return f"message {number} is from {message.role!r}; expected 'user' or 'assistant'"
        if not message.content:
            return f"message {number} is empty"
        if len(message.content) > MAX_MESSAGE:
            return f"message {number} has {len(message.content)} characters, at most {MAX_MESSAGE} are taken"
    total = sum(len(message.content) for message in body.messages)
    if total > MAX_CONVERSATION:
        return f"the conversation has {total} characters, at most {MAX_CONVERSATION} are taken: start a new one"
    return (
        _outside("temperature", body.temperature, TEMPERATURE)
        or _outside("top_k", body.top_k, TOP_K)
        or _outside("max_tokens", body.max_tokens, MAX_TOKENS)
    )


def order(body: ChatBody) -> dict[str, Any]:
    """What the model process is told."""
    given = {name: getattr(body, name) for name in DEFAULTS}
    return {
        "messages": [{"role": message.role, "content": message.content} for message in body.messages],
        **{name: DEFAULTS[name] if value is None else value for name, value in given.items()},
        "seed": random.randrange(2**31) if body.seed is None else body.seed,
    }


@dataclass
class Exchange:
    """A request under way. `stop` may come at any time, from another connection."""

    pool: Pool
    ticket: Ticket
    order: Mapping[str, Any]
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self) -> None:
        self.stopped.set()

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """The stream: who answers, how the wait goes, tokens, and one last event. Gives everything back when left."""
        job: Job | None = None
        try:
            yield {"id": self.name, "model": self.ticket.checkpoint.key}
            async for status in self._wait():
                yield status
            worker = self.ticket.worker
            if self.ticket.death is not None:
                yield self.ticket.death.to_json()
                return
            if self.stopped.is_set() or worker is None:
                yield {"done": True, "stopped": True}
                return
            self.ticket.worker = None  # the lease is the job's from here on
            job = worker.submit(self.name, self.order)
            if worker.ready is not None:
                yield {"serving": line(worker.ready["attention"], worker.ready["device"]).to_json()}
            async for event in self._tokens(job):
                yield event
        finally:
            self.pool.withdraw(self.ticket)
            if job is not None:
                job.worker.abandon(job)

    async def _wait(self) -> AsyncGenerator[dict[str, Any], None]:
        told: dict[str, Any] = {}
        spoken = time.monotonic()
        settled = asyncio.ensure_future(self.ticket.settled.wait())
        stopped = asyncio.ensure_future(self.stopped.wait())
        try:
            while not (settled.done() or stopped.done()):
                status = self.pool.status(self.ticket)
                if status != told or time.monotonic() - spoken > KEEP_ALIVE:
                    told, spoken = status, time.monotonic()
                    yield status
                await asyncio.wait((settled, stopped), timeout=TELL_EVERY, return_when=asyncio.FIRST_COMPLETED)
        finally:
            settled.cancel()
            stopped.cancel()

    async def _tokens(self, job: Job) -> AsyncGenerator[dict[str, Any], None]:
        """Ends at once when stopped: the process is told, and need not have answered."""
        source = job.read()
        stopped = asyncio.ensure_future(self.stopped.wait())
        coming: asyncio.Future[Any] | None = None
        try:
            while True:
                coming = asyncio.ensure_future(anext(source))
                await asyncio.wait((coming, stopped), return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    yield {"done": True, "stopped": True}
                    return
                event = coming.result()
                for out in translate(event):
                    yield out
                if isinstance(event, Obituary) or event["event"] in ("done", "failed"):
                    return
        finally:
            stopped.cancel()
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
            await source.aclose()


def translate(event: dict[str, Any] | Obituary) -> list[dict[str, Any]]:
    """An event of the model process as the page, or a client of nanochat's own server, gets it."""
    if isinstance(event, Obituary):
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
