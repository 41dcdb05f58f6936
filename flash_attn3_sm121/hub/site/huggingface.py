"""The answers that `huggingface_hub` and every version of `kernels` ask for, as JSON values: for models and kernels.

A kernel repository answers under both types: `kernels` asks for models to 0.12 and for kernels from 0.14 on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flash_attn3_sm121.hub.index import FileEntry, Index, Manifest, Repo

LIBRARY = "kernels"


def info(name: str, repo: Repo, sha: str, manifest: Manifest) -> dict[str, Any]:
    """`GET /api/models/ORG/NAME/revision/SHA`."""
    created = repo.revisions[sha].created
    return {
        "_id": sha[:24],
        "id": name,
        "modelId": name,
        "author": name.partition("/")[0],
        "sha": sha,
        "createdAt": created,
        "lastModified": created,
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [LIBRARY, repo.flavour],
        "library_name": LIBRARY,
        "siblings": [{"rfilename": path} for path in sorted(manifest.files)],
    }


def _row(path: str, entry: FileEntry | None) -> dict[str, Any]:
    """A row of a listing. `oid` only has to differ when the content does; folders have none of their own."""
    if entry is None:
        return {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
    return {"type": "file", "oid": entry.sha256[:40], "size": entry.size, "path": path}


def listings(manifest: Manifest) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """`GET /api/models/ORG/NAME/tree/SHA/FOLDER` for each folder.

    Clients ask for the root with `recursive=true` and for folders without: files can't look at a query, so the root's
    listing is of everything and a folder's of what lies directly in it.
    """
    everything: dict[str, FileEntry | None] = dict(manifest.files)
    for path in manifest.files:
        parts = path.split("/")
        everything.update({"/".join(parts[:count]): None for count in range(1, len(parts))})
    rows = {path: _row(path, everything[path]) for path in sorted(everything)}
    direct: dict[str, list[dict[str, Any]]] = {path: [] for path, entry in everything.items() if entry is None}
    for path, row in rows.items():
        if "/" in path:
            direct[path.rpartition("/")[0]].append(row)
    yield "", list(rows.values())
    yield from sorted(direct.items())


def refs(repo: Repo) -> dict[str, Any]:
    """`main` and the whole-number versions (v1, v2, ...) are branches, as `kernels` expects; other refs are tags."""
    branches: list[dict[str, str]] = []
    tags: list[dict[str, str]] = []
    for name, sha in sorted(repo.refs.items()):
        branch = name == "main" or (name[:1] == "v" and name[1:].isdecimal())
        (branches if branch else tags).append(
            {"name": name, "ref": f"refs/{'heads' if branch else 'tags'}/{name}", "targetCommit": sha}
        )
    return {"branches": branches, "converts": [], "tags": tags, "pullRequests": []}


def organization(index: Index, name: str) -> dict[str, Any]:
    """What `kernels` 0.14 and later ask before they run code: whoever set HF_ENDPOINT to this hub chose to trust it."""
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
