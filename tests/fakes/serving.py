"""A package index over HTTP for tests: project pages in both forms, range requests, and faults on demand."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ci.index import Wanted

PROJECT = "the-project"


@dataclass
class Index:
    """What is served, and what was asked. `faults` are applied to file requests, one each, first come first served."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    page_json: bool = True
    announced: dict[str, str] = field(default_factory=dict)  # false hashes
    token: str | None = None
    faults: list[str] = field(default_factory=list)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    sent: int = 0  # bytes of parts
    address: str = ""

    @property
    def url(self) -> str:
        return f"{self.address}/simple"

    def page(self) -> tuple[str, bytes]:
        rows = [
            {
                "filename": name,
                "url": f"../../files/{name}",
                "hashes": {"sha256": self.announced.get(name) or sha(body)},
            }
            for name, body in self.files.items()
        ]
        if self.page_json:
            return "application/vnd.pypi.simple.v1+json", json.dumps(
                {"meta": {"api-version": "1.0"}, "name": PROJECT, "files": rows}
            ).encode()
        anchors = [
            f'<a href="../../files/{n}#sha256={self.announced.get(n) or sha(b)}">{n}</a>' for n, b in self.files.items()
        ]
        return "text/html; charset=utf-8", "<br>".join(anchors).encode()


def sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def pip_looks_at(monkeypatch: pytest.MonkeyPatch, *, index: str = "", links: Path | str = "") -> None:
    """Configure pip, for programs that are started too: one index or none, and a find-links folder."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_INDEX_URL" if index else "PIP_NO_INDEX", index or "1")


def make_wheel(folder: Path, project: str, tag: str, files: Mapping[str, str | bytes]) -> Wanted:
    """A wheel, version 1.0, that pip accepts. Files below a `bin` folder are executable."""
    folder.mkdir(parents=True, exist_ok=True)
    name = project.replace("-", "_")
    info = f"{name}-1.0.dist-info"
    metadata = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n",
        f"{info}/RECORD": "",
    }
    path = folder / f"{name}-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as zipped:
        for member, content in {**files, **metadata}.items():
            row = zipfile.ZipInfo(member)
            row.external_attr = (0o100755 if "/bin/" in member else 0o100644) << 16
            zipped.writestr(row, content)
    return Wanted(project=project, filename=path.name, sha256=sha(path.read_bytes()))


def handler(index: Index) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            index.asked.append((self.path, wanted))
            if index.token and self.headers.get("Authorization") != index.token:
                self.send_error(401)
            elif self.path == f"/simple/{PROJECT}/":
                self.answer(200, *index.page())
            elif self.path.startswith("/files/") and self.path[7:] in index.files:
                self.file(index.files[self.path[7:]], wanted)
            else:
                self.send_error(404)

        def file(self, body: bytes, wanted: str | None) -> None:
            fault = index.faults.pop(0) if index.faults else None
            if fault == "500":
                self.send_error(500)
                return
            match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
            status, head, part = 200, {}, body
            if match and index.ranges:
                end = min(int(match[2] or len(body)), len(body) - 1) if match[1] else len(body) - 1
                start = int(match[1]) if match[1] else max(0, len(body) - int(match[2]))
                part = body[start : end + 1]
                index.sent += len(part)
                status, head = 206, {"Content-Range": f"bytes {start}-{end}/{len(body)}"}
            self.answer(status, "application/octet-stream", part, head, cut=fault == "cut")

        def answer(
            self, status: int, kind: str, body: bytes, head: dict[str, str] | None = None, *, cut: bool = False
        ) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(head or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    return Handler


@contextmanager
def serving(index: Index) -> Iterator[Index]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(index))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    index.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield index
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
