"""The pip index: PEP 503 pages, their JSON form (PEP 691, with PEP 700's fields), metadata files (PEP 658, PEP 714)."""

from __future__ import annotations

from html import escape
from typing import Any
from urllib.parse import quote

from aiohttp import web
from packaging.utils import canonicalize_name

from flash_attn3_sm121.hub.server.catalog import Catalog
from flash_attn3_sm121.hub.server.conditional import quality
from flash_attn3_sm121.hub.server.replies import REVALIDATE, refuse, send_file, send_json, send_text
from flash_attn3_sm121.hub.server.state import STATE

JSON_TYPE = "application/vnd.pypi.simple.v1+json"
HTML_TYPE = "application/vnd.pypi.simple.v1+html"
API_VERSION = "1.1"


def wants_json(accept: str | None) -> bool:
    """Whether a client likes the JSON form strictly better; people and old tools get HTML."""
    if accept is None:
        return False
    liked = max(quality(accept, JSON_TYPE), quality(accept, "application/vnd.pypi.simple.latest+json"))
    html = max(quality(accept, HTML_TYPE), quality(accept, "text/html"))
    return liked > 0 and liked > html


def html_type(accept: str | None) -> str:
    asked = accept is not None and quality(accept, HTML_TYPE) > 0
    return f"{HTML_TYPE if asked else 'text/html'}; charset=utf-8"


def file_row(catalog: Catalog, filename: str) -> dict[str, Any]:
    """PEP 691's description of one file. Addresses are relative, so a proxy may put the hub under any prefix."""
    wheel = catalog.index.wheels[filename]
    row: dict[str, Any] = {
        "filename": filename,
        "url": f"../../files/{quote(filename)}",
        "hashes": {"sha256": wheel.sha256},
        "size": wheel.size,
        "core-metadata": {"sha256": wheel.metadata_sha256},
        "yanked": False,
    }
    if wheel.requires_python:
        row["requires-python"] = wheel.requires_python
    if wheel.published:
        row["upload-time"] = wheel.published
    return row


def project_json(catalog: Catalog, project: str) -> dict[str, Any]:
    files = catalog.projects[project]
    return {
        "meta": {"api-version": API_VERSION},
        "name": project,
        "versions": list(dict.fromkeys(catalog.index.wheels[name].version for name in files)),
        "files": [file_row(catalog, name) for name in files],
    }


def _html(title: str, rows: list[str]) -> str:
    head = (
        "<!DOCTYPE html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
        f'<meta name="pypi:repository-version" content="{API_VERSION}">\n<title>{escape(title)}</title>\n</head>\n'
    )
    return f"{head}<body>\n<h1>{escape(title)}</h1>\n" + "".join(f"{row}<br>\n" for row in rows) + "</body>\n</html>\n"


def project_html(catalog: Catalog, project: str) -> str:
    rows = []
    for name in catalog.projects[project]:
        row = file_row(catalog, name)
        digest = f"sha256={row['core-metadata']['sha256']}"
        python = row.get("requires-python")
        rows.append(
            f'<a href="{escape(row["url"])}#sha256={row["hashes"]["sha256"]}"'
            + (f' data-requires-python="{escape(python)}"' if python else "")
            + f' data-core-metadata="{digest}" data-dist-info-metadata="{digest}">{escape(name)}</a>'
        )
    return _html(f"Links for {project}", rows)


def list_json(catalog: Catalog) -> dict[str, Any]:
    return {"meta": {"api-version": API_VERSION}, "projects": [{"name": name} for name in sorted(catalog.projects)]}


def list_html(catalog: Catalog) -> str:
    rows = [f'<a href="{quote(name)}/">{escape(name)}</a>' for name in sorted(catalog.projects)]
    return _html("Simple index", rows)


async def simple_list(request: web.Request) -> web.StreamResponse:
    catalog = await request.app[STATE].catalog()
    accept = request.headers.get("Accept")
    if wants_json(accept):
        return await send_json(request, list_json(catalog), content_type=JSON_TYPE)
    return await send_text(request, list_html(catalog), html_type(accept))


async def simple_project(request: web.Request) -> web.StreamResponse:
    catalog = await request.app[STATE].catalog()
    asked = request.match_info["project"]
    project, accept = canonicalize_name(asked), request.headers.get("Accept")
    if project not in catalog.projects:
        return refuse(404, "no such project in this hub")
    slash = request.rel_url.raw_path.endswith("/")
    if asked != project or not slash:
        location = f"{'../' if slash else ''}{quote(project)}/"
        return web.Response(status=301, headers={"Location": location, "Cache-Control": REVALIDATE})
    if wants_json(accept):
        return await send_json(request, project_json(catalog, project), content_type=JSON_TYPE)
    return await send_text(request, project_html(catalog, project), html_type(accept))


async def simple_bare(request: web.Request) -> web.StreamResponse:
    return web.Response(status=301, headers={"Location": "simple/", "Cache-Control": REVALIDATE})


async def wheel(request: web.Request) -> web.StreamResponse:
    """A wheel, or its METADATA, by file name. A name may be published again, so it is asked for again each time."""
    state = request.app[STATE]
    filename = request.match_info["filename"]
    found = (await state.catalog()).wheel_file(filename)
    if found is None:
        return refuse(404, "no such file in this hub")
    headers = {"Cache-Control": REVALIDATE}
    if filename.endswith(".whl"):
        headers["Content-Disposition"] = f'attachment; filename="{filename}"'
    return await send_file(request, state.vault, found[0], filename, headers=headers)


def routes() -> list[web.RouteDef]:
    return [
        web.get("/simple", simple_bare),
        web.get("/simple/", simple_list),
        web.get("/simple/{project}", simple_project),
        web.get("/simple/{project}/", simple_project),
        web.get("/files/{filename}", wheel),
    ]
