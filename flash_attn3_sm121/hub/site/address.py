"""From an address that a client asks to the content: one table for our server, for nginx's tree and for `pull`.

The text of a request is a key that is looked up in the signed index. It never becomes part of a path on the disk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

from flash_attn3_sm121.hub.index import FileEntry, Index, Manifest, Repo

INDEX_JSON, INDEX_HTML = "index.json", "index.html"
# First folders of addresses: no organisation may be called like one of them.
RESERVED = frozenset({"api", "files", "hub", "kernels", "simple", "-"})
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".metadata": "text/plain; charset=utf-8",
    ".py": "text/plain; charset=utf-8",
    ".sig": "application/json",
    ".svg": "image/svg+xml",
    ".toml": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
}
BINARY = "application/octet-stream"


def content_type(path: str) -> str:
    """By the ending of the file's name."""
    return TYPES.get("." + path.rpartition(".")[2], BINARY) if "." in path else "application/json"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What an address names. `commit` is the revision, for what lies in a repository; `fixed` says it never changes."""

    path: str  # of the file, below the tree
    entry: FileEntry
    commit: str = ""
    fixed: bool = False


@dataclass(frozen=True, kw_only=True)
class Directory:
    """One generation, to look addresses up in."""

    index: Index
    read_manifest: Callable[[str], Manifest] = field(repr=False)

    @functools.cached_property
    def _manifest(self) -> Callable[[str], Manifest]:
        # A few: memory does not grow with the number of revisions.
        return functools.lru_cache(maxsize=32)(self.read_manifest)

    def find(self, path: str) -> Found | None:
        """The file at an address (without the slash in front); None where there is none."""
        if path.startswith("files/"):
            return self._wheel(path)
        parts = path.split("/")
        if parts[0] == "kernels":
            parts = parts[1:]
        if len(parts) > 4 and parts[2] == "resolve":
            return self._repository_file(parts)
        if parts[:2] == ["api", "kernels"]:
            parts[1] = "models"
        site = self.index.site
        if len(parts) > 6 and parts[4] in ("revision", "tree"):
            repo = self.index.repos.get(f"{parts[2]}/{parts[3]}")
            sha = repo.resolve(parts[5]) if repo is not None else None
            if repo is None or sha is None:
                return None
            parts[5] = sha
            site = self._manifest(repo.revisions[sha].listing).files if repo.revisions[sha].listing else site
        entry = site.get("/".join(parts))
        return None if entry is None else Found(path=path, entry=entry)

    def _wheel(self, path: str) -> Found | None:
        name = path.removeprefix("files/")
        wheel = self.index.wheels.get(name)
        if wheel is not None:
            return Found(path=path, entry=FileEntry(sha256=wheel.sha256, size=wheel.size))
        wheel = self.index.wheels.get(name.removesuffix(".metadata"))
        if wheel is None:
            return None
        return Found(path=path, entry=FileEntry(sha256=wheel.metadata_sha256, size=wheel.metadata_size))

    def _repository_file(self, parts: list[str]) -> Found | None:
        repo = self.index.repos.get(f"{parts[0]}/{parts[1]}")
        sha = repo.resolve(parts[3]) if repo is not None else None
        if repo is None or sha is None:
            return None
        inner = "/".join(parts[4:])
        entry = self._manifest(repo.revisions[sha].manifest).files.get(inner)
        return None if entry is None else Found(path=inner, entry=entry, commit=sha, fixed=parts[3] == sha)

    def missing(self, path: str) -> str:
        """The X-Error-Code of huggingface_hub for an address without a file."""
        parts = path.split("/")
        if parts[0] == "kernels":
            parts = parts[1:]
        elif parts[0] == "api":
            parts = parts[2:]
        repo: Repo | None = self.index.repos.get("/".join(parts[:2]))
        if repo is None:
            return "RepoNotFound"
        return "EntryNotFound" if len(parts) < 4 or repo.resolve(parts[3]) else "RevisionNotFound"
