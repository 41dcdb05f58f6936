"""One model process by itself: replies made in turn, a reader who is lost, noise on its pipes."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from examples.nanochat_web.checkout import Checkout, open_checkout
from examples.nanochat_web.ending import Ending
from examples.nanochat_web.process import Job, Worker
from tests.nanochat_web.harness import CONFIG, World


@pytest.fixture
def checkout(world: World, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    world.put("chatsft_checkpoints", "d99", 1, model_config={**CONFIG, "sequence_len": 4000})
    for name, value in world.environ().items():
        monkeypatch.setenv(name, value)
    return open_checkout(world.nanochat, Path(sys.executable))


def order(text: str, seed: int = 1) -> dict[str, Any]:
    message = [{"role": "user", "content": text}]
    return {"messages": message, "temperature": 0.5, "top_k": 50, "max_tokens": 4000, "seed": seed}


async def started(checkout: Checkout) -> Worker:
    checkpoint = next(one for one in checkout.found() if one.tag == "d99")
    ready = asyncio.Event()
    worker = Worker(checkpoint, silence=30, loading=30, changed=ready.set)
    command = checkout.worker_command(checkpoint, None)
    await worker.start(command, cwd=checkout.root, env=checkout.environment(checkpoint, os.environ))
    while worker.ready is None:
        await asyncio.wait_for(ready.wait(), 30)
        ready.clear()
    return worker


async def text_of(job: Job) -> str:
    text = ""
    async for event in job.read():
        assert not isinstance(event, Ending), str(event)
        text += event.get("text", "")
    return text


def test_a_reader_who_takes_nothing_holds_nobody_back(checkout: Checkout) -> None:
    async def go() -> None:
        worker = await started(checkout)
        worker.leases = 2
        slow = worker.submit("slow", order("echo " + "s" * 500))
        quick = worker.submit("quick", order("echo " + "q" * 900))
        assert await text_of(quick) == "q" * 900
        assert slow.over and worker.leases == 0 and worker.jobs == {}
        assert await text_of(slow) == "s" * 500
        await worker.unload("the end of the test")
        assert worker.ending is not None and "the end of the test" in worker.ending.what

    asyncio.run(go())


def test_two_replies_are_made_in_turn(world: World, checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    order_of: list[str] = []
    take = Worker._take
    monkeypatch.setattr(
        Worker, "_take", lambda self, kind, event: order_of.append(event.get("id")) or take(self, kind, event)
    )

    async def go() -> None:
        worker = await started(checkout)
        worker.leases = 3
        world.gate("start", 0)
        first = worker.submit("first", order("gate start"))  # holds the process up until both others are there
        a = worker.submit("a", order("echo " + "a" * 300))
        before = len(order_of)
        b = worker.submit("b", order("echo " + "b" * 300))
        world.gate("start", 99)
        await text_of(first)
        assert await asyncio.gather(text_of(a), text_of(b)) == ["a" * 300, "b" * 300]
        switches = sum(x != y for x, y in zip(order_of[before:], order_of[before + 1 :], strict=False))
        assert switches > 100  # one after the other would be a handful
        await worker.unload("done")

    asyncio.run(go())


def test_what_nanochat_prints_does_not_get_between_the_events(checkout: Checkout) -> None:
    engine = checkout.root / "nanochat" / "engine.py"
    noise = (
        'print(\'{"event": "token", "id": "a", "text": "forged"}\', flush=True)\n        import os; os.write(1, b"raw")'
    )
    engine.write_text(engine.read_text().replace("seen = list(tokens)", f"seen = list(tokens)\n        {noise}", 1))

    async def go() -> None:
        worker = await started(checkout)
        worker.leases = 1
        assert await text_of(worker.submit("a", order("echo clean"))) == "clean"
        await worker.unload("done")
        assert any("forged" in text for text in worker.log)

    asyncio.run(go())
