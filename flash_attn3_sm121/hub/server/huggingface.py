"""The Hugging Face endpoint: what `huggingface_hub` and every `kernels` version ask, for models and kernels.

A kernel repository answers under both types: `kernels` asks for models to 0.12 and for kernels from 0.14 on.
"""

from __future__ import annotations

from typing import Any, Literal

from aiohttp import web

from flash_attn3_sm121.hub.index import FileEntry, Index, Manifest, Repo
from flash_attn3_sm121.hub.layout import is_revision
from flash_attn3_sm121.hub.server.catalog import Catalog, children, descendants
from flash_attn3_sm121.hub.server.replies import IMMUTABLE, REVALIDATE, refuse, send_file, send_json
from flash_attn3_sm121.hub.server.state import STATE

Kind = Literal["models", "kernels"]
LIBRARY = "kernels"


def repo_missing() -> web.Response:
    return refuse(404, "Repository not found", code="RepoNotFound")


def revision_missing() -> web.Response:
    return refuse(404, "Invalid rev id", code="RevisionNotFound")


def entry_missing() -> web.Response:
    return refuse(404, "Entry not found", code="EntryNotFound")


async def _find(request: web.Request, revision: str) -> tuple[Repo, str, Manifest] | web.Response:
    catalog = await request.app[STATE].catalog()
    repo = catalog.repo(request.match_info["org"], request.match_info["name"])
    if repo is None:
        return repo_missing()
    found = catalog.manifest(repo, revision)
    return revision_missing() if found is None else (repo, *found)


def info(name: str, repo: Repo, sha: str, manifest: Manifest) -> dict[str, Any]:
    created = min(revision.created for revision in repo.revisions.values())
    return {
        "_id": sha[:24],
        "id": name,
        "modelId": name,
        "author": name.partition("/")[0],
        "sha": sha,
        "createdAt": created,
        "lastModified": repo.revisions[sha].created,
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [LIBRARY, repo.flavour],
        "library_name": LIBRARY,
        "siblings": [{"rfilename": path} for path in sorted(manifest.files)],
    }


def tree_item(path: str, entry: FileEntry | None) -> dict[str, Any]:
    """A row of a listing. `oid` only has to differ when the content does; folders have none of their own."""
    if entry is None:
        return {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
    return {"type": "file", "oid": entry.sha256[:40], "size": entry.size, "path": path}


async def repo_info(request: web.Request) -> web.StreamResponse:
    found = await _find(request, request.match_info.get("revision", "main"))
    if isinstance(found, web.Response):
        return found
    repo, sha, manifest = found
    name = f"{request.match_info['org']}/{request.match_info['name']}"
    return await send_json(request, info(name, repo, sha, manifest), headers={"X-Repo-Commit": sha})


async def repo_list(request: web.Request) -> web.StreamResponse:
    """All repositories, filtered by `author` and `search` as the real hub does."""
    catalog: Catalog = await request.app[STATE].catalog()
    author, search = request.query.get("author"), request.query.get("search", "").lower()
    rows = []
    for name, repo in sorted(catalog.index.repos.items()):
        found = catalog.manifest(repo, "main")
        if found and search in name.lower() and author in (None, name.partition("/")[0]):
            rows.append(info(name, repo, *found))
    return await send_json(request, rows)


async def tree(request: web.Request) -> web.StreamResponse:
    found = await _find(request, request.match_info["revision"])
    if isinstance(found, web.Response):
        return found
    _, sha, manifest = found
    folder = request.match_info.get("path", "").rstrip("/")
    recursive = request.query.get("recursive", "").lower() in ("true", "1")
    rows = descendants(manifest, folder) if recursive else children(manifest, folder)
    if not rows and folder:
        return entry_missing()
    items = [tree_item(path, rows[path]) for path in sorted(rows)]
    return await send_json(request, items, headers={"X-Repo-Commit": sha})


def refs_body(repo: Repo) -> dict[str, Any]:
    """`main` and the whole-number versions (v1, v2, ...) are branches, as `kernels` expects; other refs are tags."""
    branches: list[dict[str, str]] = []
    tags: list[dict[str, str]] = []
    for name, sha in sorted(repo.refs.items()):
        branch = name == "main" or (name[:1] == "v" and name[1:].isdecimal())
        (branches if branch else tags).append(
            {"name": name, "ref": f"refs/{'heads' if branch else 'tags'}/{name}", "targetCommit": sha}
        )
    return {"branches": branches, "converts": [], "tags": tags, "pullRequests": []}


async def refs(request: web.Request) -> web.StreamResponse:
    found = await _find(request, "main")
    return found if isinstance(found, web.Response) else await send_json(request, refs_body(found[0]))


async def resolve(request: web.Request) -> web.StreamResponse:
    revision = request.match_info["revision"]
    found = await _find(request, revision)
    if isinstance(found, web.Response):
        return found
    _, sha, manifest = found
    path = request.match_info["path"]
    entry = manifest.files.get(path)
    headers = {"X-Repo-Commit": sha}
    if entry is None:
        response = entry_missing()
        response.headers.update(headers)
        return response
    state = request.app[STATE]
    headers["Cache-Control"] = f"{state.audience}, {IMMUTABLE}" if is_revision(revision) else REVALIDATE
    return await send_file(request, state.vault, entry, path, headers=headers)


def organization_body(index: Index, name: str) -> dict[str, Any]:
    count = sum(1 for repo in index.repos if repo.partition("/")[0] == name)
    return {
        "name": name,
        "fullname": name,
        "avatarUrl": "",
        "isVerified": False,
        "trustedKernelPublisher": True,
        "numUsers": 1,
        "numModels": count,
        "numKernels": count,
        "numDatasets": 0,
        "numSpaces": 0,
    }


async def organization(request: web.Request) -> web.StreamResponse:
    """What `kernels` 0.14 and later ask before they run code: whoever set HF_ENDPOINT to this hub chose to trust it."""
    catalog: Catalog = await request.app[STATE].catalog()
    name = request.match_info["org"]
    if name not in catalog.organizations:
        return refuse(404, "Organization not found", code="RepoNotFound")
    return await send_json(request, organization_body(catalog.index, name))


def routes() -> list[web.RouteDef]:
    kind, repo = "{kind:models|kernels}", "{org}/{name}"
    return [
        web.get(f"/api/{kind}", repo_list),
        web.get(f"/api/{kind}/{repo}", repo_info),
        web.get(f"/api/{kind}/{repo}/revision/{{revision}}", repo_info),
        web.get(f"/api/{kind}/{repo}/tree/{{revision}}", tree),
        web.get(f"/api/{kind}/{repo}/tree/{{revision}}/{{path:.*}}", tree),
        web.get(f"/api/{kind}/{repo}/refs", refs),
        web.get("/api/organizations/{org}/overview", organization),
        web.get(f"/kernels/{repo}/resolve/{{revision}}/{{path:.+}}", resolve),
        web.get(f"/{repo}/resolve/{{revision}}/{{path:.+}}", resolve),
    ]
