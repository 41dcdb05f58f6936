"""The handlers of the pages for people."""

from __future__ import annotations

import re

from aiohttp import web

from flash_attn3_sm121._version import __version__
from flash_attn3_sm121.hub.server.assets import PAGE_POLICY
from flash_attn3_sm121.hub.server.assets import asset as find_asset
from flash_attn3_sm121.hub.server.page import PageFacts, render, render_repo
from flash_attn3_sm121.hub.server.replies import refuse, send_text
from flash_attn3_sm121.hub.server.state import STATE

_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(:\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?")
_HTML = "text/html; charset=utf-8"
_HEADERS = {"Content-Security-Policy": PAGE_POLICY}


def base_url(request: web.Request) -> str:
    """The address as the visitor sees it. The Host header goes into commands, so only a plain one is believed."""
    config = request.app[STATE].config
    host = request.headers.get("Host", "")
    scheme = request.headers.get("X-Forwarded-Proto", "")
    if scheme not in ("http", "https"):
        scheme = config.scheme
    return f"{scheme}://{host}" if _HOST.fullmatch(host) else config.url(config.port)


def _facts(request: web.Request) -> PageFacts:
    state = request.app[STATE]
    return PageFacts(
        base=base_url(request),
        token=state.config.token is not None,
        stale=bool(state.shelf.trouble),
        version=__version__,
    )


async def page(request: web.Request) -> web.StreamResponse:
    catalog = await request.app[STATE].catalog()
    return await send_text(request, render(catalog, _facts(request)), _HTML, headers=_HEADERS)


async def repo_page(request: web.Request) -> web.StreamResponse:
    """Under the repository's own name, where the real hub has its page: error messages of clients lead there."""
    catalog = await request.app[STATE].catalog()
    org, name = request.match_info["org"], request.match_info["name"]
    if catalog.repo(org, name) is None:
        return refuse(404, "Repository not found", code="RepoNotFound")
    return await send_text(
        request, render_repo(catalog, f"{org}/{name}", _facts(request), root="../"), _HTML, headers=_HEADERS
    )


async def repo_alias(request: web.Request) -> web.StreamResponse:
    """`/kernels/ORG/NAME`, as newer clients call the same repository."""
    org, name = request.match_info["org"], request.match_info["name"]
    if (await request.app[STATE].catalog()).repo(org, name) is None:
        return refuse(404, "Repository not found", code="RepoNotFound")
    return web.Response(status=302, headers={"Location": f"../../{org}/{name}", "Cache-Control": "no-store"})


async def asset(request: web.Request) -> web.StreamResponse:
    found = find_asset(request.match_info["name"])
    if found is None:
        return refuse(404, "there is nothing under this address")
    return await send_text(request, found.text, found.content_type)


def routes() -> list[web.RouteDef]:
    return [
        web.get("/", page),
        web.get("/-/{name}", asset),
        web.get("/kernels/{org}/{name}", repo_alias),
        web.get("/{org}/{name}", repo_page),
    ]
