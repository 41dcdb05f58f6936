"""`flash-attn3 hub export`: the hub as plain files, for nginx, an object store or a CDN.

Every address that a client asks becomes a file; an address that is both a file and a folder (the API's) becomes a
folder with `index.json`. Headers can't be files: `nginx.conf` beside them gives the ones that huggingface_hub needs.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flash_attn3_sm121.errors import HubError
from flash_attn3_sm121.hub.checkout import Resolved
from flash_attn3_sm121.hub.index import FileEntry, Index, Repo
from flash_attn3_sm121.hub.layout import RepoName
from flash_attn3_sm121.hub.server import huggingface, simple
from flash_attn3_sm121.hub.server.catalog import Catalog, children, descendants
from flash_attn3_sm121.hub.store import Hub
from flash_attn3_sm121.hub.trust import trusted_index

MARKER = ".flash-attn3-export"
RESERVED = frozenset({"api", "files", "kernels", "simple"})
LISTEN = "127.0.0.1:8080"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    target: str
    files: int
    size: int
    repos: tuple[str, ...]
    wheels: int


@dataclass(kw_only=True)
class _Writer:
    """Writes below one folder; the same object a second time is a hard link."""

    hub: Hub
    root: Path
    placed: dict[str, Path] = field(default_factory=dict)
    count: int = 0
    size: int = 0

    def text(self, path: str, value: str | Any) -> None:
        out = self._target(path)
        text = value if isinstance(value, str) else json.dumps(value, indent=1, sort_keys=True) + "\n"
        out.write_text(text, encoding="utf-8")

    def object(self, path: str, entry: FileEntry) -> None:
        out = self._target(path)
        twin = self.placed.get(entry.sha256)
        if twin is not None:
            try:
                os.link(twin, out)
                return
            except OSError:  # no hard links on this file system, or too many of one file: write it once more
                twin = None
        out.write_bytes(self.hub.read(entry))
        self.size += entry.size
        # nginx makes an ETag of mtime and size, and the clients' cache names files by ETag: two files of one size
        # written in one second would be taken for each other. So the time is taken from the content.
        stamp = 1_000_000_000 + int(entry.sha256[:7], 16)
        os.utime(out, (stamp, stamp))
        self.placed[entry.sha256] = out

    def link(self, path: str, to: str) -> None:
        """A relative link to a folder: web servers follow it, `rsync -L` and `aws s3 sync` copy what it names."""
        out = self.root / path
        out.parent.mkdir(parents=True, exist_ok=True)
        out.symlink_to(to)

    def _target(self, path: str) -> Path:
        out = self.root / path
        out.parent.mkdir(parents=True, exist_ok=True)
        self.count += 1
        return out


def export(hub: Hub, target: Path, *, listen: str = LISTEN) -> Exported:
    """Write the current generation to `target`, replacing an earlier export; anything else there is refused."""
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / MARKER).is_file())):
        raise HubError(f"{target} is not empty and not an export", hint="name an empty or a new folder")
    index = trusted_index(hub)
    beside = target.absolute().parent / f".{target.name}.{uuid.uuid4().hex}"
    beside.parent.mkdir(parents=True, exist_ok=True)
    writer = _Writer(hub=hub, root=beside)
    try:
        found = _revisions(hub, index)
        catalog = Catalog(index=index, manifests={f.manifest_sha256: f.resolved.manifest for f in found})
        writer.text(MARKER, f"generation {index.generation}\n")
        _pip_side(writer, catalog)
        for item in found:
            _repo_side(writer, item)
        for name, repo in sorted(index.repos.items()):
            _once_a_repo(writer, name, repo)
        for org in sorted(catalog.organizations):
            writer.text(f"api/organizations/{org}/overview/index.json", huggingface.organization_body(index, org))
        writer.text("nginx.conf", nginx_conf(index, target.absolute(), listen))
        _swap(beside, target)
    finally:
        if beside.exists():
            shutil.rmtree(beside)
    return Exported(
        target=str(target),
        files=writer.count,
        size=writer.size,
        repos=tuple(sorted(index.repos)),
        wheels=len(index.wheels),
    )


@dataclass(frozen=True, kw_only=True)
class _Found:
    resolved: Resolved
    repo: Repo
    manifest_sha256: str
    refs: tuple[str, ...]  # that name it


def _revisions(hub: Hub, index: Index) -> list[_Found]:
    """The revisions that a ref names; older ones are in the hub, not in an export."""
    found = []
    for name, repo in sorted(index.repos.items()):
        for sha in sorted(set(repo.refs.values())):
            held = repo.revisions[sha].manifest
            resolved = Resolved(repo=RepoName.parse(name), revision=sha, ref=sha, manifest=hub.manifest(held))
            refs = sorted(ref for ref, target in repo.refs.items() if target == sha)
            found.append(_Found(resolved=resolved, repo=repo, manifest_sha256=held, refs=tuple(refs)))
    return found


def _pip_side(writer: _Writer, catalog: Catalog) -> None:
    names = sorted(catalog.projects)
    writer.text("simple/index.html", simple.list_html(catalog))
    writer.text("simple/index.json", simple.list_json(catalog))
    for project in names:
        writer.text(f"simple/{project}/index.html", simple.project_html(catalog, project))
        writer.text(f"simple/{project}/index.json", simple.project_json(catalog, project))
    for filename, wheel in catalog.index.wheels.items():
        writer.object(f"files/{filename}", FileEntry(sha256=wheel.sha256, size=wheel.size))
        metadata = FileEntry(sha256=wheel.metadata_sha256, size=wheel.metadata_size)
        writer.object(f"files/{filename}.metadata", metadata)


def _repo_side(writer: _Writer, item: _Found) -> None:
    """The real files under the revision's own name; refs, and the other repository type, are links to that."""
    name, manifest, sha = str(item.resolved.repo), item.resolved.manifest, item.resolved.revision
    info = huggingface.info(name, item.repo, sha, manifest)
    api = f"api/models/{name}"
    for path, entry in manifest.files.items():
        writer.object(f"{name}/resolve/{sha}/{path}", entry)
    writer.text(f"{api}/revision/{sha}/index.json", info)
    everything = descendants(manifest, "")
    for folder in ("", *sorted(path for path, entry in everything.items() if entry is None and "/" not in path)):
        rows = children(manifest, folder) if folder else everything
        listing = [huggingface.tree_item(path, rows[path]) for path in sorted(rows)]
        writer.text(f"{api}/tree/{sha}/{folder + '/' if folder else ''}index.json", listing)
    for ref in item.refs:
        for place in (f"{name}/resolve", f"{api}/revision", f"{api}/tree"):
            writer.link(f"{place}/{ref}", sha)
        if ref == "main":
            writer.text(f"{api}/index.json", info)


def _once_a_repo(writer: _Writer, name: str, repo: Repo) -> None:
    org = RepoName.parse(name).org
    if org in RESERVED:
        raise HubError(
            f"{name} can't be exported: {org}/ is a folder of the export itself", hint="publish as another name"
        )
    writer.text(f"api/models/{name}/refs/index.json", huggingface.refs_body(repo))
    writer.link(f"kernels/{name}", f"../../{name}")
    writer.link(f"api/kernels/{name}", f"../../models/{name}")


def _swap(beside: Path, target: Path) -> None:
    """Put the new export where the old one is; for a moment there is neither, never half of one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        old = target.absolute().parent / f".{target.name}.{uuid.uuid4().hex}"
        target.rename(old)
        beside.rename(target)
        shutil.rmtree(old)
    else:
        beside.rename(target)


def _commits(index: Index) -> Iterator[tuple[str, str, str]]:
    for name, repo in sorted(index.repos.items()):
        for ref, sha in sorted(repo.refs.items()):
            yield name, ref, sha


def nginx_conf(index: Index, root: Path, listen: str) -> str:
    """Maps and a server block, to be included inside `http { }`."""
    rows = "\n".join(f'    "~^/(?:kernels/)?{name}/resolve/{ref}/" {sha};' for name, ref, sha in _commits(index))
    return f"""# Written by `flash-attn3 hub export`; to be included inside http {{ }}.
map $uri $flash_attn3_commit {{
    default "";
    "~/resolve/(?<sha>[0-9a-f]{{40}})/" $sha;
{rows}
}}
map $http_accept $flash_attn3_simple {{
    default index.html;
    "~application/vnd.pypi.simple.v1\\+json" index.json;
}}
server {{
    listen {listen};
    root "{root}";
    sendfile on;
    location ~ /resolve/ {{
        default_type application/octet-stream;
        types {{ }}
        add_header X-Repo-Commit $flash_attn3_commit always;
        error_page 404 = @missing;
    }}
    location /api/ {{
        default_type application/json;
        try_files $uri/index.json =404;
        error_page 404 = @missing;
    }}
    location @missing {{
        internal;
        add_header X-Error-Code EntryNotFound always;
        return 404;
    }}
    location /simple/ {{
        types {{ text/html html; application/vnd.pypi.simple.v1+json json; }}
        add_header Vary Accept;
        try_files $uri$flash_attn3_simple $uri =404;
    }}
    location = /nginx.conf {{ return 404; }}
}}
"""
