"""The application: routes, and what holds for every answer (methods, token, headers, counters, errors)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from flash_attn3_sm121._version import __version__
from flash_attn3_sm121.hub.server import huggingface, people, simple
from flash_attn3_sm121.hub.server.assets import PLAIN_POLICY
from flash_attn3_sm121.hub.server.auth import CHALLENGE, allowed
from flash_attn3_sm121.hub.server.metrics import CONTENT_TYPE, Gauges
from flash_attn3_sm121.hub.server.replies import FileReply, refuse, send_json, send_text
from flash_attn3_sm121.hub.server.state import STATE, State

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

METHODS = ("GET", "HEAD")
OPEN_PATHS = frozenset({"/healthz"})  # says only that the server is alive: load balancers carry no token
_COMMON = {
    "Server": "flash-attn3-hub",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


@web.middleware
async def counted(request: web.Request, handler: Handler) -> web.StreamResponse:
    metrics, loop = request.app[STATE].metrics, asyncio.get_running_loop()
    route = getattr(request.match_info.handler, "__name__", "other")
    started = loop.time()
    metrics.started()
    try:
        response = await handler(request)
    except (ConnectionError, asyncio.CancelledError):
        metrics.dropped()
        raise
    except Exception:
        metrics.finished(route, 500, sent=0, seconds=loop.time() - started)
        raise
    sent = (response.content_length or 0) if request.method == "GET" else 0
    if isinstance(response, FileReply) and response.stopped:
        metrics.dropped()
    else:
        metrics.finished(route, response.status, sent=sent, seconds=loop.time() - started)
    return response


@web.middleware
async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Only reading, and only with the token."""
    if request.method not in METHODS:
        response = refuse(405, "this hub is read-only", headers={"Allow": ", ".join(METHODS)})
        response.force_close()  # whatever body comes with it is not read
        return response
    token = request.app[STATE].config.token
    if request.path not in OPEN_PATHS and not allowed(token, request.headers.get("Authorization")):
        return refuse(401, "this hub needs its token", headers={"WWW-Authenticate": CHALLENGE})
    try:
        return await handler(request)
    except web.HTTPException as error:  # the router's, for targets that are no path (`*`, `host:443`)
        return refuse(error.status, error.reason)


async def dressed(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_COMMON)
    response.headers.setdefault("Content-Security-Policy", PLAIN_POLICY)


async def healthz(request: web.Request) -> web.StreamResponse:
    state = request.app[STATE]
    catalog = await state.catalog()
    if state.shelf.trouble:
        return web.json_response({"status": "stale", "generation": catalog.index.generation}, status=503)
    return await send_json(request, {"status": "ok", "generation": catalog.index.generation})


async def metrics(request: web.Request) -> web.StreamResponse:
    state = request.app[STATE]
    index = (await state.catalog()).index
    gauges = Gauges(
        generation=index.generation,
        wheels=len(index.wheels),
        repositories=len(index.repos),
        stale=bool(state.shelf.trouble),
        version=__version__,
    )
    return await send_text(request, state.metrics.render(gauges), CONTENT_TYPE, headers={"Cache-Control": "no-store"})


async def nothing(request: web.Request) -> web.StreamResponse:
    return refuse(404, "there is nothing under this address")


def build(state: State) -> web.Application:
    """The whole server as an aiohttp application; `state` is the only thing it knows."""
    app = web.Application(middlewares=[counted, guarded])
    app[STATE] = state
    app.on_response_prepare.append(dressed)
    app.router.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/metrics", metrics),
            *simple.routes(),
            *people.routes(),
            *huggingface.routes(),
            web.get("/{anything:.*}", nothing),
        ]
    )
    return app
