"""Loads one model with the user's nanochat and answers over pipes; nanochat's own Python needs nothing more for it.

In, one JSON object a line on stdin:
    {"op": "generate", "id", "messages", "extend", "temperature", "top_k", "max_tokens", "seed"}
    {"op": "stop", "id"}
Out, one event a line on what was stdout (nanochat prints there too: it gets stderr instead):
    of the model:  "stage" (text), "ready" (facts), "attention" (facts again, after the first reply), "fatal" (text)
    of one reply:  "start" (id), "token" (id, text), "done" (id, reason, the last text), "failed" (id, text)

Several chats are decoded as one batch (rows.py), so that thirty take hardly longer than one on a GPU. Where that is not
possible, their generators are stepped in turn: a reply never waits for the end of another in either way. All steps are
on the main thread, because nanochat's calculator sets SIGALRM there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this package; the checkout takes its place in main()
from nanochat_web.model import Model, attention  # noqa: E402
from nanochat_web.rows import Rows  # noqa: E402

# How far a batch may be from each chat alone, by the number of bits that the dtype keeps. A wrong position or a wrong
# neighbour is off by about 1.
TOLERANCE = {"float32": 0.01}
TOLERANCE_OTHERS = 0.15


class Channel:
    """The way out. What nanochat and its libraries print goes to stderr from now on."""

    def __init__(self) -> None:
        self.file = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        os.dup2(2, 1)

    def send(self, event: str, **fields: Any) -> None:
        self.file.write(json.dumps({"event": event, **fields}) + "\n")
        self.file.flush()


class Text:
    """Tokens to text, whole characters only: a character of several bytes may come in several tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.held: list[int] = []

    def add(self, token: int) -> str:
        self.held.append(token)
        text: str = self.tokenizer.decode(self.held)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self.held.clear()
        return text

    def rest(self) -> str:
        text: str = self.tokenizer.decode(self.held) if self.held else ""
        self.held.clear()
        return text


Steps = Iterable[tuple[str, "int | None | Exception"]]


class Decoder(Protocol):
    """Makes tokens for several chats: Rows, or OneByOne."""

    def add(self, name: str, prompt: list[int], limit: int, order: dict[str, Any]) -> None: ...

    def remove(self, name: str) -> None: ...

    def step(self) -> Steps: ...


class OneByOne:
    """nanochat's own generator for each chat, stepped in turn."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.generators: dict[str, Iterator[Any]] = {}

    def add(self, name: str, prompt: list[int], limit: int, order: dict[str, Any]) -> None:
        steps = self.model.engine.generate(
            prompt,
            num_samples=1,
            max_tokens=limit,
            temperature=float(order["temperature"]),
            # 0 means the whole vocabulary, which older engines only know as None
            top_k=int(order["top_k"]) or None,
            seed=int(order["seed"]),
        )
        self.generators[name] = iter(steps)

    def remove(self, name: str) -> None:
        close = getattr(self.generators.pop(name), "close", None)
        if close is not None:
            close()

    def step(self) -> Steps:
        for name, steps in list(self.generators.items()):
            try:
                with self.model.precision():
                    column = next(steps, None)
            except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
                if "CUDA error" in str(error):
                    raise
                yield name, error
                continue
            # (tokens of this step, masks); newer engines yield the tokens alone
            yield name, None if column is None else int(column[0][0] if isinstance(column, tuple) else column[0])


def decoder(model: Model, wanted: str) -> tuple[Decoder, str]:
    """How chats are decoded, and that in words.

    A batch is taken where it comes out as each chat alone does, which is tried on this very model: a nanochat whose
    own attention serves it (on a CPU, newer ones) takes one length for all rows.
    """
    if wanted == "one-by-one":
        return OneByOne(model), "chats are decoded one by one, as asked for"
    try:
        rows = Rows.of(model)
        found = rows.difference()
    except (ValueError, RuntimeError, TypeError, AttributeError, AssertionError) as error:
        return OneByOne(model), f"chats are decoded one by one: {error}"
    allowed = TOLERANCE.get(str(rows.storage.dtype).removeprefix("torch."), TOLERANCE_OTHERS)
    if not found <= allowed:
        return OneByOne(model), (
            f"chats are decoded one by one: in a batch, chats of unlike lengths came out {found:.2g} of the logits' "
            f"range away from each alone, at most {allowed:g} is taken"
        )
    return Rows.of(model), f"several chats are decoded as one batch (tried: {found:.2g} away from each alone)"


@dataclass
class Job:
    """One reply in the making."""

    text: Text
    started: float
    count: int = 0


class Loop:
    """Takes orders and steps all chats."""

    def __init__(self, model: Model, channel: Channel, orders: queue.Queue[dict[str, Any]], made_by: Decoder) -> None:
        self.model, self.channel, self.orders, self.decoder = model, channel, orders, made_by
        self.jobs: dict[str, Job] = {}
        self.told = False

    def run(self) -> None:
        while True:
            self.take(wait=not self.jobs)
            if self.jobs:
                for name, token in self.decoder.step():
                    self.report(name, token)

    def take(self, *, wait: bool) -> None:
        with contextlib.suppress(queue.Empty):
            self.obey(self.orders.get(block=wait))
            while True:
                self.obey(self.orders.get_nowait())

    def obey(self, order: dict[str, Any]) -> None:
        name = order["id"]
        if order["op"] == "stop":
            if name in self.jobs:  # it may have ended by itself in the meantime
                self.end(name, "stop")
            return
        try:
            wanted = int(order["max_tokens"])
            prompt, dropped = self.model.prompt(order["messages"], wanted, extend=bool(order.get("extend")))
            limit = min(wanted, max(1, self.model.context - len(prompt)))
            self.decoder.add(name, prompt, limit, order)
        except (ValueError, AssertionError, RuntimeError) as error:
            self.channel.send("failed", id=name, text=str(error) or type(error).__name__)
            return
        self.jobs[name] = Job(text=Text(self.model.tokenizer), started=time.monotonic())
        self.channel.send("start", id=name, prompt_tokens=len(prompt), dropped=dropped, limit=limit)

    def report(self, name: str, token: int | None | Exception) -> None:
        if isinstance(token, Exception):
            del self.jobs[name]
            self.decoder.remove(name)
            self.channel.send("failed", id=name, text=f"{type(token).__name__}: {token}")
        elif token is None:
            self.end(name, "length")
        elif token in self.model.ends:
            self.end(name, "end")
        else:
            job = self.jobs[name]
            job.count += 1
            # Sent even when there is no whole character yet: it shows that this process is at work.
            self.channel.send("token", id=name, text=job.text.add(token))

    def end(self, name: str, reason: str) -> None:
        job = self.jobs.pop(name)
        self.decoder.remove(name)
        seconds = round(time.monotonic() - job.started, 3)
        text = job.text.rest()
        if reason != "end":  # half a character at the cut comes whole when the answer is continued
            text = text.rstrip("\N{REPLACEMENT CHARACTER}")
        self.channel.send("done", id=name, reason=reason, text=text, tokens=job.count, seconds=seconds)
        if not self.told:  # what the first real calls taught: a failed check of the kernels turns them off
            self.told = True
            self.channel.send("attention", **attention(self.model))


def listen(orders: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    os._exit(0)  # the server is gone, however it went; the main thread may be deep inside a kernel


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--tag", required=True)
    parser.add_argument("--step", required=True, type=int)
    parser.add_argument("--style", choices=("chat", "text"), default="chat")
    parser.add_argument("--device", help="cuda, cpu or mps (default: as nanochat finds)")
    parser.add_argument("--decode", choices=("batch", "one-by-one"), default="batch")
    args = parser.parse_args()
    sys.path[0] = os.getcwd()  # noqa: PTH109 - the checkout, as `python -m` would have it
    channel = Channel()
    orders: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=listen, args=(orders,), daemon=True).start()
    try:
        started = time.monotonic()
        model = Model(args, lambda text: channel.send("stage", text=text))
        channel.send("stage", text="trying how chats can be decoded")
        made_by, how = decoder(model, args.decode)
        seconds = round(time.monotonic() - started, 1)
        channel.send("ready", seconds=seconds, **model.facts(), decoding=how, attention=attention(model))
        Loop(model, channel, orders, made_by).run()
    except Exception as error:  # whatever it is, the page must be told; it is raised again for the log
        channel.send("fatal", text=f"{type(error).__name__}: {error}")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
