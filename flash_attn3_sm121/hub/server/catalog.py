"""One generation of the hub, laid out for look-ups by the names that clients send.

What a client names is looked up here and nowhere else. A request's text never becomes part of a path: it is a key, and
a key that is not in the tables is not there.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

from packaging.utils import canonicalize_name
from packaging.version import Version

from flash_attn3_sm121.errors import HubError
from flash_attn3_sm121.hub.index import FileEntry, Index, Manifest, Repo, WheelEntry
from flash_attn3_sm121.hub.store import Hub

RETRY_SECONDS = 2.0
log = logging.getLogger("flash_attn3_sm121.hub.server")


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """Everything that can be served. Values; nothing here touches the disk."""

    index: Index
    manifests: Mapping[str, Manifest]  # by the sha256 that a revision gives; one that is damaged is not in here

    def repo(self, org: str, name: str) -> Repo | None:
        return self.index.repos.get(f"{org}/{name}")

    def manifest(self, repo: Repo, revision: str) -> tuple[str, Manifest] | None:
        """(commit, its files) of a ref or a full revision name."""
        sha = repo.resolve(revision)
        found = self.manifests.get(repo.revisions[sha].manifest) if sha is not None else None
        return None if sha is None or found is None else (sha, found)

    @property
    def organizations(self) -> frozenset[str]:
        return frozenset(name.partition("/")[0] for name in self.index.repos)

    @property
    def projects(self) -> Mapping[str, tuple[str, ...]]:
        """Normalised project name -> its wheels' file names, by version."""
        found: dict[str, list[str]] = {}
        for filename, wheel in self.index.wheels.items():
            found.setdefault(canonicalize_name(wheel.name), []).append(filename)
        order = self.index.wheels
        return {
            name: tuple(sorted(files, key=lambda file: (Version(order[file].version), file)))
            for name, files in found.items()
        }

    def wheel_file(self, filename: str) -> tuple[FileEntry, WheelEntry] | None:
        """A wheel's content, or with `.metadata` behind its name its METADATA file (PEP 658)."""
        wheel = self.index.wheels.get(filename)
        if wheel is not None:
            return FileEntry(sha256=wheel.sha256, size=wheel.size), wheel
        wheel = self.index.wheels.get(filename.removesuffix(".metadata"))
        if wheel is None:
            return None
        return FileEntry(sha256=wheel.metadata_sha256, size=wheel.metadata_size), wheel


def children(manifest: Manifest, folder: str) -> dict[str, FileEntry | None]:
    """What lies directly in a folder ("" is the root): full path -> file, or None for a folder."""
    prefix = f"{folder}/" if folder else ""
    found: dict[str, FileEntry | None] = {}
    for path, entry in manifest.files.items():
        if path.startswith(prefix):
            head, slash, _ = path[len(prefix) :].partition("/")
            found[prefix + head] = None if slash else entry
    return found


def descendants(manifest: Manifest, folder: str) -> dict[str, FileEntry | None]:
    """Everything below a folder, the folders included."""
    prefix = f"{folder}/" if folder else ""
    found: dict[str, FileEntry | None] = {}
    for path, entry in manifest.files.items():
        if not path.startswith(prefix):
            continue
        parts = path.split("/")
        for count in range(prefix.count("/") + 1, len(parts)):
            found["/".join(parts[:count])] = None
        found[path] = entry
    return found


@dataclass(kw_only=True)
class Shelf:
    """The catalog of the current generation; follows the hub folder when somebody publishes."""

    hub: Hub
    _stamp: tuple[int, ...] | None = None
    _catalog: Catalog | None = None
    _trouble: str = ""
    _retry_at: float = 0.0

    @property
    def trouble(self) -> str:
        """Why the newest generation could not be read, while an older one is being served; "" when all is well."""
        return self._trouble

    def stale(self) -> bool:
        """Whether to read again: there is a new generation, or it is time for another try at one that was damaged."""
        retry = bool(self._trouble) and time.monotonic() >= self._retry_at
        return self._catalog is None or retry or self._stamp != self._look()

    def _look(self) -> tuple[int, ...]:
        try:
            info = os.stat(self.hub.layout.current)  # noqa: PTH116 (on every request: a plain system call)
        except OSError:
            return ()  # nothing published yet, or the folder is gone for the moment
        return (info.st_dev, info.st_ino, info.st_mtime_ns, info.st_ctime_ns)

    def load(self) -> None:
        """Read the current generation. When that fails, what was served before goes on being served."""
        stamp = self._look()
        try:
            Hub.open(self.hub.layout.root)  # a folder that was unmounted is trouble, not an empty hub
            index = self.hub.index()
            self._catalog = Catalog(index=index, manifests=self._manifests(index))
            self._trouble = ""
        except (HubError, OSError) as error:
            if self._catalog is None:
                raise
            self._trouble, self._retry_at = str(error), time.monotonic() + RETRY_SECONDS
            log.error("the new generation cannot be read, the old one is still served: %s", error)
        self._stamp = stamp

    def _manifests(self, index: Index) -> dict[str, Manifest]:
        known = self._catalog.manifests if self._catalog is not None else {}
        found: dict[str, Manifest] = {}
        for name, sha, revision in index.revisions():
            if revision.manifest in found:
                continue
            try:
                found[revision.manifest] = known.get(revision.manifest) or self.hub.manifest(revision.manifest)
            except (HubError, OSError) as error:
                log.error("%s@%s is not served: %s", name, sha, error)
        return found

    @property
    def catalog(self) -> Catalog:
        if self._catalog is None:
            self.load()
        assert self._catalog is not None
        return self._catalog
