"""Loads one model with the user's nanochat and answers over pipes; nanochat's own Python needs nothing more for it.

In, one JSON object a line on stdin:
    {"op": "generate", "id", "messages", "temperature", "top_k", "max_tokens", "seed", "credit"}
    {"op": "credit", "id", "count"}      so many more tokens may come: a slow reader stops its own chat, nothing else
    {"op": "stop", "id"}
Out, one event a line on what was stdout (nanochat prints there too: it gets stderr instead):
    of the model:  "stage" (text), "ready" (facts), "attention" (facts again, after the first reply), "fatal" (text)
    of one reply:  "start" (id), "token" (id, text), "done" (id, reason, the last text), "failed" (id, text)

Several chats are answered at once by stepping their generators in turn: one copy of the weights, and a reply never
waits for the end of another. All steps are on the main thread, because nanochat's calculator sets SIGALRM there.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import queue
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OURS = "flash_attn3_sm121"
END_TOKENS = ("<|assistant_end|>",)


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


class Job:
    """One reply in the making."""

    def __init__(self, name: str, steps: Iterator[Any], text: Text, credit: int, limit: int) -> None:
        self.name, self.steps, self.text, self.credit, self.limit = name, steps, text, credit, limit
        self.count = 0
        self.started = time.monotonic()


class Model:
    """nanochat's model, tokenizer and engine behind what this program needs of them."""

    def __init__(self, args: argparse.Namespace, channel: Channel) -> None:
        channel.send("stage", text="importing torch")
        import torch

        channel.send("stage", text="importing nanochat")
        common = importlib.import_module("nanochat.common")
        classic = importlib.util.find_spec("nanochat.checkpoint_manager") is not None
        runtime = common if classic else importlib.import_module("harness.runtime")
        loader = importlib.import_module("nanochat.checkpoint_manager" if classic else "harness.checkpoint")
        engine = importlib.import_module("nanochat.engine")
        device_type = args.device or runtime.autodetect_device_type()
        self.device = runtime.compute_init(device_type)[4]
        channel.send("stage", text=f"loading {args.tag}, step {args.step}, onto {device_type}")
        phase = {"phase": "eval"} if classic else {}
        self.model, self.tokenizer, self.meta = loader.load_model(
            args.source, self.device, model_tag=args.tag, step=args.step, **phase
        )
        self.engine = engine.Engine(self.model, self.tokenizer)
        self.style = args.style
        # Newer nanochat computes in a dtype of its own choice; before, the caller had to ask for bf16 on a GPU.
        self.autocast = device_type == "cuda" and not hasattr(common, "COMPUTE_DTYPE")
        self.compute_dtype = getattr(
            common, "COMPUTE_DTYPE", torch.bfloat16 if device_type == "cuda" else torch.float32
        )
        self.bos = self.tokenizer.get_bos_token_id()
        self.ends = {self.bos, *(self.tokenizer.encode_special(name) for name in END_TOKENS)}
        self.context = int(self.model.config.sequence_len)

    def precision(self) -> Any:
        import torch

        return torch.autocast("cuda", torch.bfloat16) if self.autocast else contextlib.nullcontext()

    def turns(self, messages: list[dict[str, str]]) -> list[list[int]]:
        """The tokens of each message. A base model has never seen a chat: it gets plain text to go on with."""
        encode, special = self.tokenizer.encode, self.tokenizer.encode_special
        if self.style == "text":
            joint = encode("\n\n")
            pieces = [list(encode(message["content"])) for message in messages]
            return [piece if i == 0 else [*joint, *piece] for i, piece in enumerate(pieces)]
        return [
            [special(f"<|{m['role']}_start|>"), *encode(m["content"]), special(f"<|{m['role']}_end|>")]
            for m in messages
        ]

    def prompt(self, messages: list[dict[str, str]], wanted: int) -> tuple[list[int], int]:
        """The prompt that fits into the model's context, and how many old messages had to go for that."""
        turns = self.turns(messages)
        opening = [] if self.style == "text" else [self.tokenizer.encode_special("<|assistant_start|>")]
        room = self.context - min(wanted, self.context // 4) - len(opening) - 1
        dropped = 0
        while sum(map(len, turns)) > room and len(turns) > 1:
            # Whole exchanges, so that what is left begins with a question again.
            many = 2 if self.style == "chat" and len(turns) > 2 else 1
            turns, dropped = turns[many:], dropped + many
        if sum(map(len, turns)) > room:
            raise ValueError(
                f"your message is {sum(map(len, turns))} tokens long and this model reads {self.context}, "
                f"with {self.context - room} of them kept for the answer: shorten it"
            )
        return [self.bos, *(token for turn in turns for token in turn), *opening], dropped

    def job(self, order: dict[str, Any]) -> tuple[Job, dict[str, Any]]:
        wanted = int(order["max_tokens"])
        tokens, dropped = self.prompt(order["messages"], wanted)
        limit = min(wanted, max(1, self.context - len(tokens)))
        steps = self.engine.generate(
            tokens,
            num_samples=1,
            max_tokens=limit,
            temperature=float(order["temperature"]),
            # 0 means the whole vocabulary, which older engines only know as None
            top_k=int(order["top_k"]) or None,
            seed=int(order["seed"]),
        )
        job = Job(order["id"], iter(steps), Text(self.tokenizer), int(order["credit"]), limit)
        return job, {"prompt_tokens": len(tokens), "dropped": dropped, "limit": limit}

    def facts(self) -> dict[str, Any]:
        import torch

        return {
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device),
            "torch": torch.__version__,
            "python": ".".join(str(part) for part in sys.version_info[:3]),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "context": self.context,
        }


def holders() -> list[str]:
    """Where nanochat keeps a module of ours: what get_kernel really handed out."""
    found = []
    for name, module in list(sys.modules.items()):
        if name == "nanochat" or name.startswith("nanochat."):
            for attribute, value in list(vars(module).items()):
                if isinstance(value, types.ModuleType) and value.__name__.split(".")[0].startswith(OURS):
                    found.append(f"{name}.{attribute}")
    return sorted(found)


def explained(package: Any, loaded: Model) -> Any:
    """What `explain` says to one step of decoding in this model's shapes."""
    import torch

    config = loaded.model.config
    dim, dtype = config.n_embd // config.n_head, loaded.compute_dtype

    def empty(heads: int, length: int) -> Any:
        return torch.zeros(1, length, heads, dim, dtype=dtype, device=loaded.device)

    windows = getattr(loaded.model, "window_sizes", None)
    extra = {"window_size": tuple(windows[0])} if windows else {}
    keys = empty(config.n_kv_head, 1)
    return package.explain(
        empty(config.n_head, 1),
        *(empty(config.n_kv_head, 16) for _ in range(2)),
        k_new=keys,
        v_new=keys,
        cache_seqlens=torch.ones(1, dtype=torch.int32, device=loaded.device),
        causal=True,
        **extra,
    )


def attention(loaded: Model) -> dict[str, Any]:
    """What serves nanochat's attention and why, gathered; the server makes the sentence."""
    facts: dict[str, Any] = {"holders": holders(), "package": None, "error": None}
    try:
        package = importlib.import_module(OURS)
    except ImportError as error:
        return {**facts, "error": f"{OURS} cannot be imported in {sys.executable}: {error}"}
    facts.update(package=package.__version__, path=str(Path(str(package.__file__)).parent))
    try:
        told = explained(package, loaded)
    except (RuntimeError, ValueError, TypeError, AttributeError, ImportError) as error:
        return {**facts, "error": f"explain: {type(error).__name__}: {error}"}  # no reason not to chat
    choice = told.forward
    return {
        **facts,
        "backend": choice.backend,
        "forced": choice.forced,
        "family": choice.family,
        "code": choice.code,
        "refusals": [[refusal.backend, refusal.reason] for refusal in choice.refusals],
        "where": told.device.name or told.device.type,
        "capability": told.device.capability,
        "text": str(told),
    }


class Loop:
    """Takes orders and steps every chat that may go on, in turn."""

    def __init__(self, model: Model, channel: Channel, orders: queue.Queue[dict[str, Any]]) -> None:
        self.model, self.channel, self.orders = model, channel, orders
        self.jobs: dict[str, Job] = {}
        self.told = False

    def run(self) -> None:
        while True:
            runnable = [job for job in self.jobs.values() if job.credit > 0]
            self.take(wait=not runnable)
            for job in runnable:
                if job.name in self.jobs:
                    self.step(job)

    def take(self, *, wait: bool) -> None:
        with contextlib.suppress(queue.Empty):
            self.obey(self.orders.get(block=wait))
            while True:
                self.obey(self.orders.get_nowait())

    def obey(self, order: dict[str, Any]) -> None:
        name = order["id"]
        if order["op"] == "generate":
            try:
                self.jobs[name], facts = self.model.job(order)
            except (ValueError, AssertionError, RuntimeError) as error:
                self.channel.send("failed", id=name, text=str(error) or type(error).__name__)
            else:
                self.channel.send("start", id=name, **facts)
        elif name in self.jobs:  # it may have ended by itself in the meantime
            if order["op"] == "credit":
                self.jobs[name].credit += int(order["count"])
            elif order["op"] == "stop":
                self.end(self.jobs[name], "stop")

    def step(self, job: Job) -> None:
        try:
            with self.model.precision():
                column = next(job.steps, None)
        except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
            del self.jobs[job.name]
            self.channel.send("failed", id=job.name, text=f"{type(error).__name__}: {error}")
            if "CUDA error" in str(error):
                raise  # the context of the GPU is gone with it: nothing this process does can work any more
            return
        if column is None:
            self.end(job, "length")
            return
        # (tokens of this step, masks); newer engines yield the tokens alone
        token = column[0][0] if isinstance(column, tuple) else column[0]
        if token in self.model.ends:
            self.end(job, "end")
            return
        job.count += 1
        job.credit -= 1
        # Sent even when there is no whole character yet: it shows that this process is at work.
        self.channel.send("token", id=job.name, text=job.text.add(token))

    def end(self, job: Job, reason: str) -> None:
        del self.jobs[job.name]
        close = getattr(job.steps, "close", None)
        if close is not None:
            close()
        seconds = time.monotonic() - job.started
        self.channel.send(
            "done", id=job.name, reason=reason, text=job.text.rest(), tokens=job.count, seconds=round(seconds, 3)
        )
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
    args = parser.parse_args()
    sys.path[0] = os.getcwd()  # noqa: PTH109 - the checkout, as `python -m` would have it; not this file's folder
    channel = Channel()
    orders: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=listen, args=(orders,), daemon=True).start()
    try:
        started = time.monotonic()
        model = Model(args, channel)
        seconds = round(time.monotonic() - started, 1)
        channel.send("ready", seconds=seconds, **model.facts(), attention=attention(model))
        Loop(model, channel, orders).run()
    except Exception as error:  # whatever it is, the page must be told; it is raised again for the log
        channel.send("fatal", text=f"{type(error).__name__}: {error}")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
