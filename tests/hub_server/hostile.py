"""Requests that nobody with good intentions sends, by the thousand and always the same for a seed."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

STEPS = (
    "..", "../", "..%2f", "%2e%2e/", "%2e%2e%2f", "%252e%252e%252f", "..%5c", "..\\", "....//", "..;/",
    "%c0%ae%c0%ae/",
    "%e0%80%ae%e0%80%ae/", "..%00/", ".%2e/", "%u002e%u002e/", "\u2025/", "\uff0e\uff0e/", "%ef%bc%8e%ef%bc%8e/",
    "./", "//",
)  # fmt: skip
TARGETS = (
    "etc/passwd", "canary.txt", "hub/inside-link", "hub.json", "CURRENT", "lock", "tmp/", "objects/",
    "generations/00000001.json",
    "proc/self/environ", "proc/self/mem", "dev/zero", "objects/00/" + "0" * 64, "inside-link",
    "inside-folder/canary.txt",
)  # fmt: skip
BYTES = (
    "%00",
    "%0a",
    "%0d%0aX-Injected:%20yes",
    "%ff%fe",
    "%",
    "%zz",
    "%f0%9f%92%a9",
    "%7f",
    "'",
    "{{7*7}}",
    "${jndi:x}",
    ";",
)
METHODS = (
    "POST",
    "PUT",
    "DELETE",
    "PATCH",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "PROPFIND",
    "get",
    "GE T",
    "\x00",
    "A" * 300,
)
HEADER_NAMES = (
    "Range", "If-Range", "If-None-Match", "If-Match", "Accept", "Accept-Encoding", "Authorization", "Host", "Cookie",
    "X-Forwarded-Proto", "X-Forwarded-Host", "Content-Length", "Transfer-Encoding", "Expect", "Upgrade", "Connection",
    "Content-Encoding", "Content-Type", "If-Modified-Since", "User-Agent", "Te", "Trailer", "Forwarded",
)  # fmt: skip
HEADER_VALUES = (
    "", "bytes=", "bytes=-1", "bytes=99999999999999999999-", "bytes=0-0,1-1", "bytes=-0",
    "bytes=" + ",".join(["0-"] * 500),
    "*", '"', 'W/"', "gzip;q=", "gzip;q=1e9", "gzip;q=nan", "a;q=-inf", "Basic", "Basic =", "Basic ////", "Bearer ",
    "Basic " + base64.b64encode(b"a:b").decode(), "<script>alert(1)</script>", "evil.example:99999", "[::1",
    "http", "-1",
    "+1", "0x10", "1e3", "99999999999999999999", "chunked", "chunked, chunked", "identity, chunked",
    "100-continue", "lots",
    "h2c", "websocket", "close, keep-alive", "\xff\xfe", "\x01\x02", "x" * 3000, "a\tb", "Sat, 99 Foo 2026", "br",
    "deflate",
)  # fmt: skip
MALFORMED = (
    b"GET * HTTP/1.1\r\nHost: a\r\nExpect: \xff\xfe\r\n\r\n",
    b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\nExpect: \xff\xfe\r\n\r\n",
    b"", b"\r\n" * 20, b"GET\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
    b"GET  / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"GET / HTTP/1.1\r\n: empty\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", b"GET / HTTP/1.1\nHost: a\n\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64, b"\x00" * 512, b"\xff" * 512, b"SSH-2.0-x\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n",
    b"GET http:// HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n", b"GET http://a:99999999/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET //// HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", b"GET ?x HTTP/1.1\r\nHost: a\r\n\r\n", b"GET # HTTP/1.1\r\nHost: a\r\n\r\n",
    b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", b"GET file:///etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(3000)) + b"\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Names:
    """True names of the hub, to be hostile from close by."""

    repo: str
    file: str
    wheel: str
    sha: str


def _bases(names: Names) -> list[str]:
    return [
        "/",
        "/files/",
        "/simple/",
        "/-/",
        f"/{names.repo}/resolve/main/",
        f"/{names.repo}/resolve/{names.sha}/build/",
        f"/kernels/{names.repo}/resolve/main/",
        f"/api/models/{names.repo}/tree/main/",
        f"/api/kernels/{names.repo}/revision/",
        "/api/models/",
        "/api/organizations/",
        f"/files/{names.wheel}/",
        f"/files/{names.wheel}.metadata/",
    ]


def _traversal(rng: random.Random, names: Names) -> str:
    return rng.choice(_bases(names)) + rng.choice(STEPS) * rng.randint(1, 12) + rng.choice(TARGETS)


def _absolute(rng: random.Random, names: Names) -> str:
    lead = rng.choice(("/", "%2f", "%252f", "\\", "%5c", "file://", "http://127.0.0.1/", "//evil.example/", "C:\\"))
    return rng.choice(_bases(names)) + lead + rng.choice(TARGETS)


def _bytes(rng: random.Random, names: Names) -> str:
    good = rng.choice((names.file, names.wheel, names.repo, "main", names.sha))
    at = rng.randint(0, len(good))
    return rng.choice(_bases(names)) + good[:at] + rng.choice(BYTES) + good[at:]


def _long(rng: random.Random, names: Names) -> str:
    unit = rng.choice(("a", "%61", "../", "a/", "%2e", "\u00e9", "%00"))
    return rng.choice(_bases(names)) + unit * rng.choice((50, 300, 1200, 5000))


def _noise(rng: random.Random, names: Names) -> str:
    pool = "abz019._-~!$&'()*+,;=:@/?%#[]|\\^`{}<>\"\u00e9\u4e2d\U0001f4a9\u202e\u0000"
    return rng.choice(_bases(names)) + "".join(rng.choices(pool, k=rng.randint(1, 80)))


def _query(rng: random.Random, names: Names) -> str:
    keys = ("recursive", "expand", "author", "search", "limit", "cursor", "v", "path", "file")
    pairs = "&".join(f"{rng.choice(keys)}={rng.choice((*STEPS, *BYTES, *TARGETS))}" for _ in range(rng.randint(1, 4)))
    return rng.choice(_bases(names)).rstrip("/") + "?" + pairs


PATHS: tuple[Callable[[random.Random, Names], str], ...] = (
    _traversal,
    _traversal,
    _absolute,
    _bytes,
    _long,
    _noise,
    _query,
)


def _head(method: str, path: str, headers: list[tuple[str, str]]) -> bytes:
    # A blank inside of the target would end it: that is what MALFORMED is for.
    target = path.replace(" ", "%20").encode("utf-8", "surrogatepass").replace(b"\r", b"").replace(b"\n", b"")
    lines = b"".join(f"{name}: ".encode() + value.encode("latin-1", "replace") + b"\r\n" for name, value in headers)
    return method.encode() + b" " + target + b" HTTP/1.1\r\n" + lines + b"\r\n"


def requests(seed: int, count: int, names: Names) -> Iterator[bytes]:
    """`count` requests as they go over the wire."""
    rng = random.Random(seed)
    for _ in range(count):
        kind = rng.random()
        if kind < 0.08:
            yield _mutated(rng, rng.choice(MALFORMED))
            continue
        method = "GET" if kind < 0.75 else "HEAD" if kind < 0.85 else rng.choice(METHODS)
        path = rng.choice(PATHS)(rng, names) if rng.random() < 0.85 else rng.choice(_bases(names)) + names.file
        headers = [("Host", "127.0.0.1")] if rng.random() < 0.9 else []
        headers += [(rng.choice(HEADER_NAMES), rng.choice(HEADER_VALUES)) for _ in range(rng.choice((0, 0, 1, 3)))]
        yield _head(method, path, headers)


def _mutated(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.5 or not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
