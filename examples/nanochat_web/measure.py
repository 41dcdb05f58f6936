"""Measures a class at work: so many chats at once on this page, decoded as one batch and one by one, and on nanochat's
own server where the checkout has one (until spring 2026). All in one run, with the same questions and greedy decoding,
so that every server makes the same answers.

  python examples/nanochat_web/measure.py --nanochat ~/nanochat
  python examples/nanochat_web/measure.py --nanochat ~/nanochat --untrained 12   # no model at hand: one of that depth
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)
sys.path.append(str(HERE.parents[1]))
from nanochat_web.catalog import Catalog  # noqa: E402
from nanochat_web.checkout import Checkout, open_checkout  # noqa: E402
from nanochat_web.checkpoints import SOURCES, Checkpoint  # noqa: E402

PATIENCE = 900.0
# Of unlike lengths, as a class asks.
QUESTIONS = (
    "Why is the sky blue?",
    "Write a poem about a robot that learns to paint, in four lines that rhyme.",
    "What is 17 times 23?",
    "Explain to a child of ten years how a bicycle stays upright while it rolls, and why it falls over when it stands. "
    "Use a picture from everyday life, and say where the picture is wrong.",
    "Name three rivers.",
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer as the asker sees it. Seconds from the question on."""

    text: str
    tokens: int | None
    first: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table."""

    server: str
    chats: int
    tokens: int
    seconds: float
    firsts: tuple[float, ...]
    texts: tuple[str, ...]

    def __str__(self) -> str:
        firsts = f"{statistics.median(self.firsts) * 1000:,.0f} | {max(self.firsts) * 1000:,.0f}"
        return f"| {self.server} | {self.chats} | {self.tokens / self.seconds:,.0f} | {self.seconds:.1f} | {firsts} |"


def ask(port: int, question: str, tokens: int, model: str | None) -> Answer:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": question}],
        "temperature": 0.0,
        "max_tokens": tokens,
    }
    body.update({"model": model} if model else {})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    started = time.perf_counter()
    connection.request("POST", "/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {answer.read()[:300]!r}")
    text, first, count = "", None, None
    while line := answer.readline():
        if not line.startswith(b"data: "):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            raise RuntimeError(f"{event['error']} {event.get('log')}")
        if "token" in event:
            first = time.perf_counter() if first is None else first
            text += event["token"]
        if event.get("done"):
            count = event.get("tokens")
    end = time.perf_counter()
    connection.close()
    return Answer(text=text, tokens=count, first=(first or end) - started, end=end - started)


def at_once(port: int, chats: int, tokens: int, model: str | None) -> tuple[list[Answer], float]:
    """All questions at the same moment; the answers, and how long it took until the last was complete."""
    answers: dict[int, Answer] = {}
    problems: list[Exception] = []

    def one(number: int) -> None:
        try:
            answers[number] = ask(port, QUESTIONS[number % len(QUESTIONS)], tokens, model)
        except (OSError, RuntimeError, ValueError) as error:
            problems.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(chats)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise RuntimeError(f"{len(problems)} of {chats} chats failed; the first: {problems[0]}")
    return [answers[number] for number in range(chats)], time.perf_counter() - started


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def running(command: Sequence[str], *, port: int, cwd: Path, env: dict[str, str]) -> Iterator[None]:
    """A server, from its first answer on."""
    print("$", " ".join(command), file=sys.stderr, flush=True)
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        raise SystemExit(f"measure.py: the server did not start:\n{log.read()[-3000:]}") from None
                    time.sleep(0.2)
            yield
        finally:
            process.terminate()
            process.wait(60)


def servers(
    checkout: Checkout, checkpoint: Checkpoint, args: argparse.Namespace, state: Path
) -> Iterator[tuple[str, Any]]:
    """The name of each server, and what runs it on a given port."""
    device = ("--device", args.device) if args.device else ()
    fixed = ("--nanochat", str(checkout.root), "--python", str(checkout.python), "--state", str(state), *device)
    for name, decode in (("this page, one batch", "batch"), ("this page, one by one", "one-by-one")):
        yield (
            name,
            lambda port, decode=decode: (
                sys.executable,
                str(HERE / "serve.py"),
                *fixed,
                "--port",
                str(port),
                "--decode",
                decode,
            ),
        )
    if (checkout.root / "scripts" / "chat_web.py").is_file():
        chosen = ("-i", checkpoint.source.name, "-g", checkpoint.tag, "-s", str(checkpoint.step))
        kind = ("--device-type", args.device) if args.device else ()
        where = ("-m", "scripts.chat_web", "--host", "127.0.0.1", "--port")
        yield "nanochat's own server", lambda port: (str(checkout.python), *where, str(port), *chosen, *kind)


def measure(checkout: Checkout, checkpoint: Checkpoint, args: argparse.Namespace, state: Path) -> list[Line]:
    lines: list[Line] = []
    counts: dict[str, int] = {}  # greedy: a question has one answer, whoever makes it
    for name, command in servers(checkout, checkpoint, args, state):
        port = free_port()
        ours = command(port)[0] == sys.executable and "serve.py" in command(port)[1]
        model = checkpoint.key if ours else None
        with running(command(port), port=port, cwd=checkout.root, env=checkout.environment(checkpoint, os.environ)):
            at_once(port, 2, 8, model)  # loads the model, and whatever else is made once
            for chats in args.chats:
                answers, seconds = at_once(port, chats, args.tokens, model)
                for number, answer in enumerate(answers):
                    if answer.tokens is not None:
                        counts[QUESTIONS[number % len(QUESTIONS)]] = answer.tokens
                total = sum(counts[QUESTIONS[number % len(QUESTIONS)]] for number in range(chats))
                line = Line(
                    server=name,
                    chats=chats,
                    tokens=total,
                    seconds=seconds,
                    firsts=tuple(answer.first for answer in answers),
                    texts=tuple(answer.text for answer in answers),
                )
                lines.append(line)
                print(line, file=sys.stderr, flush=True)
    return lines


def facts(checkout: Checkout) -> str:
    """What the figures are of."""
    script = (
        "import platform, torch; c = torch.cuda; "
        "cpu = f'the CPU ({platform.machine()}, {torch.get_num_threads()} threads)'; "
        "print(c.get_device_name() if c.is_available() else cpu, '· torch', torch.__version__)"
    )
    done = subprocess.run([str(checkout.python), "-c", script], capture_output=True, text=True, check=True)
    commit = subprocess.run(
        ["git", "-C", str(checkout.root), "log", "-1", "--format=%h of %cs"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{done.stdout.strip()} · nanochat {commit.stdout.strip() or 'of no commit'}"


def untrained(checkout: Checkout, depth: int) -> None:
    nobody = Checkpoint(source=SOURCES[1], tag="", step=0, size=0, modified=0.0)
    command = [str(checkout.python), str(HERE / "untrained.py"), "--depth", str(depth)]
    print("$", " ".join(command), file=sys.stderr, flush=True)
    env = checkout.environment(nobody, os.environ)
    done = subprocess.run(command, cwd=checkout.root, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"measure.py: no model could be made:\n{done.stderr[-3000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanochat", type=Path, required=True, metavar="DIR", help="your nanochat checkout")
    parser.add_argument("--python", type=Path, metavar="FILE", help="its Python (default: DIR/.venv/bin/python)")
    parser.add_argument("--device", choices=("cuda", "cpu", "mps"), help="default: as nanochat finds by itself")
    parser.add_argument("--model", metavar="KEY", help="such as sft/d12/2000 (default: the first that can be loaded)")
    parser.add_argument(
        "--untrained", type=int, metavar="DEPTH", help="measure a model of this depth that nobody trained"
    )
    parser.add_argument(
        "--tokens", type=int, default=64, metavar="N", help="length of an answer (default: %(default)s)"
    )
    parser.add_argument(
        "--chats", type=lambda text: [int(one) for one in text.split(",")], default=[1, 8, 30], metavar="N,N,..."
    )
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers that it started end with it
    with tempfile.TemporaryDirectory() as folder:
        if args.untrained:
            os.environ["NANOCHAT_BASE_DIR"] = str(Path(folder) / "base")
        checkout = open_checkout(args.nanochat, args.python)
        if args.untrained:
            untrained(checkout, args.untrained)
        found = Catalog(checkout).checkpoints()
        usable = [one for one in found if one.problem is None and args.model in (None, one.key)]
        if not usable:
            raise SystemExit(f"measure.py: no model to measure below {checkout.base}; --untrained 12 makes one")
        lines = measure(checkout, usable[0], args, Path(folder) / "state")
        what = f"{usable[0].name}{' (untrained)' if args.untrained else ''}"
        print(f"{what} · {facts(checkout)} · {args.tokens} tokens an answer\n")
        print(
            "| server | chats at once | tokens a second | all done, s | first token, median, ms | the last one's, ms |"
        )
        print("|---|---|---|---|---|---|")
        for line in lines:
            print(line)
        equal = all(len({line.texts for line in lines if line.chats == chats}) == 1 for chats in args.chats)
        print(f"\nAnswers of all servers: {'the same, letter by letter' if equal else 'NOT the same'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
