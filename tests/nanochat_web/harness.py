"""A stand-in checkout, checkpoints, the server as a user starts it, and a client that reads events one by one."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
SERVE = ROOT / "examples" / "nanochat_web" / "serve.py"
STANDIN = Path(__file__).with_name("standin")
LIGHT = Path(__file__).with_name("light")
VOCABULARY = 265  # bytes and special tokens
CONFIG = {"sequence_len": 256, "vocab_size": VOCABULARY, "n_layer": 1, "n_head": 2, "n_kv_head": 1, "n_embd": 32}
TENSORS = ("embed.weight", "to_kv.weight", "head.weight")
PATIENCE = 60.0
Event = dict[str, Any]


def save(path: Path, size: int = 1000, names: tuple[str, ...] = TENSORS) -> None:
    """A file of the form that `torch.save` writes, of a given size, with tensors of these names."""
    padding = 0
    for _ in range(2):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(dict.fromkeys(names), protocol=2))
            archive.writestr("archive/data/0", b"x" * padding)
        padding = size - path.stat().st_size
    assert padding == 0


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything a server needs, in one folder."""

    root: Path

    @property
    def nanochat(self) -> Path:
        return self.root / "nanochat"

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @classmethod
    def make(cls, root: Path, *, light: bool = False) -> World:
        """`light`: without torch, for what is not about attention."""
        world = cls(root=root)
        for source in (STANDIN, LIGHT) if light else (STANDIN,):
            shutil.copytree(source, world.nanochat, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        (root / "gates").mkdir()
        world.tokenizer(VOCABULARY)
        return world

    def tokenizer(self, entries: int) -> None:
        """Train the stand-in's tokenizer: a file that holds how many entries it has."""
        folder = self.base / "tokenizer"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.pkl").write_text(str(entries), encoding="ascii")

    def put(self, folder: str, tag: str, step: int, size: int = 1000, **meta: Any) -> Path:
        """A checkpoint of the stand-in; the folder it is in."""
        where = self.base / folder / tag
        where.mkdir(parents=True, exist_ok=True)
        save(where / f"model_{step:06d}.pt", size)
        text = json.dumps({"step": step, "model_config": CONFIG, **meta})
        (where / f"meta_{step:06d}.json").write_text(text, encoding="utf-8")
        return where

    def usual(self) -> World:
        self.put("chatsft_checkpoints", "d12", 2000, val_loss=1.649, size=123456)
        self.put("chatsft_checkpoints", "d4", 300, val_loss=2.5)
        self.put("base_checkpoints", "d12", 5500, val_bpb=0.8721)
        return self

    def gate(self, name: str, count: int) -> None:
        """Let the stand-in go on to so many characters (or problems)."""
        beside = self.root / "gates" / f"{name}.new"
        beside.write_text(str(count), encoding="ascii")
        beside.replace(self.root / "gates" / name)

    def environ(self) -> dict[str, str]:
        keep = ("PATH", "LANG", "LD_LIBRARY_PATH")
        return {
            **{name: value for name, value in os.environ.items() if name in keep},
            "HOME": str(self.root),
            "NANOCHAT_BASE_DIR": str(self.base),
            "STANDIN_GATES": str(self.root / "gates"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }

    def command(self, *arguments: str) -> list[str]:
        fixed = (
            "--nanochat",
            str(self.nanochat),
            "--python",
            sys.executable,
            "--state",
            str(self.state),
            "--port",
            "0",
        )
        return [sys.executable, str(SERVE), *fixed, *arguments]


class Stream:
    """An answer under way. `next()` waits for one event; closing it is what a closed browser tab does."""

    def __init__(self, connection: http.client.HTTPConnection, answer: http.client.HTTPResponse) -> None:
        self.connection, self.answer = connection, answer
        self.events: list[Event] = []

    def next(self) -> Event | None:
        while line := self.answer.readline():
            if line.startswith(b"data: "):
                event: Event = json.loads(line[6:])
                self.events.append(event)
                return event
        return None

    def until(self, wanted: Callable[[Event], bool]) -> Event:
        while (event := self.next()) is not None:
            if wanted(event):
                return event
        raise AssertionError(f"the stream ended before: {self.events}")

    def rest(self) -> list[Event]:
        while self.next() is not None:
            pass
        self.close()
        return self.events

    @property
    def text(self) -> str:
        return "".join(event.get("token", "") for event in self.events)

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


@dataclass
class Server:
    """A running server; `log` is its stderr so far."""

    process: subprocess.Popen[str]
    world: World
    url: str = ""
    _log: list[str] = field(default_factory=list)

    @property
    def log(self) -> str:
        return "".join(self._log)

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def _open(
        self, method: str, path: str, body: Any, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        kind = {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, path, data, {**kind, **headers})
        return connection, connection.getresponse()

    def ask(
        self, path: str, body: Any = None, *, method: str | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        connection, answer = self._open(method or ("GET" if body is None else "POST"), path, body, headers or {})
        try:
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def json(self, path: str, body: Any = None) -> Any:
        status, _, data = self.ask(path, body)
        assert status in (200, 201), (status, data)
        return json.loads(data)

    def chat(self, text: str, **more: Any) -> Stream:
        body = {"messages": [{"role": "user", "content": text}], **more}
        connection, answer = self._open("POST", "/chat/completions", body, {})
        if answer.status != 200:
            raise AssertionError(f"{answer.status}: {answer.read()!r}")
        return Stream(connection, answer)

    def wait_for(self, wanted: Callable[[], Any]) -> Any:
        """The first truthy value."""
        deadline = time.monotonic() + PATIENCE
        while not (value := wanted()):
            if time.monotonic() > deadline:
                raise AssertionError(f"never came true; the log: {self.log}")
            time.sleep(0.02)
        return value

    def chats(self) -> int:
        return sum(model["chats"] for model in self.json("/stats")["models"])

    def pids(self) -> dict[str, int]:
        return {model["id"]: model["pid"] for model in self.json("/stats")["models"]}


@contextmanager
def running(world: World, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """The server on a free port; stopped, and its log complete, at the end."""
    process = subprocess.Popen(
        world.command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**world.environ(), **(env or {})},
    )
    assert process.stdout is not None and process.stderr is not None
    server = Server(process=process, world=world)

    def read(stream: Any) -> None:
        for line in stream:
            server._log.append(line)

    thread = threading.Thread(target=read, args=(process.stderr,), daemon=True)
    thread.start()
    try:
        server.url = process.stdout.readline().strip()
        if not server.url:
            process.wait(PATIENCE)
            thread.join(PATIENCE)
            raise AssertionError(f"no server: exit code {process.returncode}\n{server.log}")
        server.wait_for(lambda: "results     /" in server.log)  # written before, but it comes by another pipe
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
        thread.join(PATIENCE)
        process.stdout.close()
        process.stderr.close()


class Network:
    """A way to a server that can fail: every connection through it is reset, the server and new ones go on.

    While `open` is clear nothing gets through, and nobody is told.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()  # a browser connects anew while the others are closed
        self._ended = False
        self.open = threading.Event()
        self.open.set()

    def __enter__(self) -> Network:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self.open.set()
        self.listener.close()
        self.fail()

    def fail(self) -> None:
        with self._lock:
            while self._open:
                one = self._open.pop()
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._ended:
                near = self.listener.accept()[0]
                with self._lock:
                    self._open.append(near)
                far = socket.create_connection(("127.0.0.1", self.target))
                with self._lock:
                    self._open.append(far)
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()
        if self._ended:
            self.fail()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.open.wait()
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def alive(pid: int) -> bool:
    """Whether a process still runs. One that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
