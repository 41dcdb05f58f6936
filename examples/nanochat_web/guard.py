"""Who may talk to the server, and what every answer carries. Plain ASGI, so that streams pass through untouched.

On loopback anybody's web page could reach it through the visitor's browser. So: the Host header must be one of ours
(a name that an attacker points at 127.0.0.1 is not), a request that changes something must come from a page of ours,
and it must be JSON, which no form of a foreign page can send.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_BODY = 1 << 19
OPEN = ("/", "/favicon.ico")  # without a token: the page itself, which asks for one
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


@dataclass(frozen=True, kw_only=True)
class Access:
    """`hosts` is None where any name will do (the server was asked to listen to a network)."""

    hosts: frozenset[str] | None
    token: str | None = None


@dataclass(frozen=True, kw_only=True)
class Refused:
    status: int
    text: str


def host_name(header: str) -> str:
    """A Host header without its port, in lower case; brackets of IPv6 taken off."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if name.count(":") == 1 else name


def judge(access: Access, *, method: str, path: str, headers: MutableMapping[str, str]) -> Refused | None:
    """Why a request is refused, or None. Header names in lower case."""
    host = headers.get("host", "")
    if access.hosts is not None and host_name(host) not in access.hosts:
        return Refused(
            status=421,
            text=f"this server does not answer to the name {host_name(host)!r}; behind a proxy, start it with "
            f"--allow-host {host_name(host) or 'NAME'}",
        )
    if method not in ("GET", "HEAD"):
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.strip().lower():
            return Refused(status=403, text=f"requests from pages of {origin!r} are not taken, only from this server's")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return Refused(status=415, text=f"expected Content-Type application/json, found {kind or 'none'}")
        length = headers.get("content-length")
        if length is not None and (not length.isdecimal() or int(length) > MAX_BODY):
            return Refused(status=413, text=f"the request is {length} bytes long, at most {MAX_BODY} are taken")
    if access.token is not None and path not in OPEN and not path.startswith("/static/"):
        given = headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {access.token}".encode()):
            return Refused(status=401, text="this server wants its access word: open the address that it printed")
    return None


class Guard:
    """The middleware."""

    def __init__(self, app: App, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # Modules of the page are asked for each time, and sent only where they have changed.
        caching = b"no-cache" if scope["path"].startswith("/static/") else b"no-store"
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                have = {name.lower() for name, _ in message["headers"]}
                more = [*HEADERS, (b"cache-control", caching)]
                message["headers"] = [*message["headers"], *((name, value) for name, value in more if name not in have)]
            await send(message)

        refused = judge(self.access, method=scope["method"], path=scope["path"], headers=headers)
        if refused is not None:
            await _refuse(with_headers, refused)
            return
        await self.app(scope, _limited(receive), with_headers)


async def _refuse(send: Send, refused: Refused) -> None:
    body = json.dumps({"detail": refused.text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _limited(receive: Receive) -> Receive:
    """A body that does not say its length is cut off at the limit; what is left of it is then no JSON."""
    taken = 0

    async def limited() -> MutableMapping[str, Any]:
        nonlocal taken
        message = await receive()
        if message["type"] == "http.request":
            taken += len(message.get("body", b""))
            if taken > MAX_BODY:
                return {"type": "http.request", "body": b"", "more_body": False}
        return message

    return limited
