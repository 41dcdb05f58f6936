"""The index of one generation: its wheels and kernel repositories, as values. store.py reads and writes files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from flash_attn3_sm121.arch import Capability, Image
from flash_attn3_sm121.errors import HubError, IntegrityError
from flash_attn3_sm121.hub.layout import (
    SCHEMA,
    RepoName,
    check_file_path,
    check_ref,
    check_revision,
    check_sha256,
    check_wheel_name,
    is_revision,
)

T = TypeVar("T")
# Schema 2 listed the generated files of every revision in the index itself; schema 1 had a signature on each wheel, no
# hub name and no order but the clock's.
INDEX_SCHEMA = 3


def dump_json(value: Any) -> bytes:
    """Canonical JSON: the same value is the same bytes, so that a hash of it means something."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def load_json(data: bytes, *, origin: str, schema: int = SCHEMA) -> dict[str, Any]:
    """A JSON object of a schema of ours; anything else is an IntegrityError that names where it came from."""
    try:
        value = json.loads(data)
    except ValueError as error:
        raise IntegrityError(f"{origin}: not JSON: {error}") from error
    if not isinstance(value, dict) or value.pop("schema", None) != schema:
        raise IntegrityError(f"{origin}: expected an object of schema {schema}")
    return value


def _build(cls: type[T], data: Mapping[str, Any], *, origin: str) -> T:
    names = {item.name for item in fields(cls)}  # type: ignore[arg-type]
    if set(data) != names:
        raise IntegrityError(f"{origin}: expected the fields {sorted(names)}, found {sorted(data)}")
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in data.items()})


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One object: its content's hash and size."""

    sha256: str
    size: int

    def __post_init__(self) -> None:
        check_sha256(self.sha256)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All files of one revision of a kernel repository."""

    flavour: str
    version: str
    files: Mapping[str, FileEntry]

    def __post_init__(self) -> None:
        for path in self.files:
            check_file_path(path)

    def to_bytes(self) -> bytes:
        return dump_json({"schema": SCHEMA, **asdict(self)})

    @classmethod
    def from_bytes(cls, data: bytes, *, origin: str) -> Manifest:
        value = load_json(data, origin=origin)
        files = value.get("files")
        if not isinstance(files, dict):
            raise IntegrityError(f"{origin}: 'files' is not an object")
        entries = {path: _build(FileEntry, entry, origin=f"{origin}: {path}") for path, entry in files.items()}
        return _build(cls, {**value, "files": entries}, origin=origin)

    @property
    def revision(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()[:40]

    def under(self, folder: str) -> dict[str, FileEntry]:
        """Files below a folder, by their path inside it."""
        prefix = folder.rstrip("/") + "/"
        return {path[len(prefix) :]: entry for path, entry in self.files.items() if path.startswith(prefix)}

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(sorted({path.split("/")[1] for path in self.files if path.startswith("build/")}))


@dataclass(frozen=True, kw_only=True)
class WheelEntry:
    """One wheel of the pip side. `verify` is "pass", "unverified" (asked for) or "no-library" (nothing to verify)."""

    sha256: str
    size: int
    metadata_sha256: str
    metadata_size: int
    name: str
    version: str
    requires_python: str
    platform: str  # linux_aarch64, linux_x86_64 or any
    families: tuple[str, ...]
    images: tuple[str, ...]
    profile: str
    cuda: str
    upstream: str
    verify: str
    checks: tuple[str, ...]  # the rules that the verifier held it to, and what was executed in software
    published: str
    added: int  # the generation that brought it in

    def __post_init__(self) -> None:
        check_sha256(self.sha256)
        check_sha256(self.metadata_sha256)

    def code_for(self, row: Capability) -> str | None:
        """The code in it that a device of that generation would run, its own first; None where there is none."""
        if str(row.family) not in self.families:
            return None
        found = [image for image in map(Image.parse, self.images) if image.runs_on(row.major, row.minor)]
        best = max(found, key=lambda image: (image.kind == "sm", image.number), default=None)
        return None if best is None else str(best)


@dataclass(frozen=True, kw_only=True)
class Revision:
    """One state of a kernel repository."""

    manifest: str  # sha256 of the manifest object
    version: str
    created: str
    added: int  # the generation that brought it in
    wheels: tuple[str, ...]
    listing: str = ""  # sha256 of the object that lists its generated files; "" where the index lists them (schema 2)

    def __post_init__(self) -> None:
        check_sha256(self.manifest)
        if self.listing:
            check_sha256(self.listing)


@dataclass(frozen=True, kw_only=True)
class Repo:
    """A kernel repository: named refs onto revisions."""

    flavour: str
    refs: Mapping[str, str]
    revisions: Mapping[str, Revision]

    def __post_init__(self) -> None:
        for ref, revision in self.refs.items():
            check_ref(ref)
            if revision not in self.revisions:
                raise IntegrityError(f"ref {ref!r} points to the revision {revision}, which is not there")
        for sha, entry in self.revisions.items():
            if check_revision(sha) != entry.manifest[:40]:
                raise IntegrityError(f"revision {sha} is not the head of its manifest's hash {entry.manifest}")

    @property
    def history(self) -> list[tuple[str, Revision]]:
        """The revisions by their names, the one that came last first."""
        return sorted(self.revisions.items(), key=lambda item: (item[1].added, item[1].version), reverse=True)

    def resolve(self, name: str) -> str | None:
        """The revision that a ref or a revision's (full) name stands for; None where there is no such thing."""
        if name in self.refs:
            return self.refs[name]
        return name if is_revision(name) and name in self.revisions else None


def _read(data: bytes, *, origin: str) -> dict[str, Any]:
    """An index as JSON. One of an older schema gets the form of the newest."""
    try:
        return load_json(data, origin=origin, schema=INDEX_SCHEMA)
    except IntegrityError:
        try:
            value = load_json(data, origin=origin, schema=2)
        except IntegrityError:
            value = _of_schema_1(load_json(data, origin=origin))
    for repo in value.get("repos", {}).values():
        for revision in repo.get("revisions", {}).values():
            revision["listing"] = ""
    return value


def _of_schema_1(value: dict[str, Any]) -> dict[str, Any]:
    """An index of schema 1 in the form of schema 2. Its signatures were of less than is signed today: they go."""
    for wheel in value.get("wheels", {}).values():
        wheel.pop("signature", None), wheel.pop("key", None)
        wheel |= {"added": 0, "checks": []}
    for repo in value.get("repos", {}).values():
        for revision in repo.get("revisions", {}).values():
            revision["added"] = 0
    return {"hub": "", "site": {}, **value}


@dataclass(frozen=True, kw_only=True)
class Index:
    """One generation."""

    hub: str = ""
    generation: int = 0
    created: str = ""
    wheels: Mapping[str, WheelEntry] = field(default_factory=dict)
    repos: Mapping[str, Repo] = field(default_factory=dict)
    site: Mapping[str, FileEntry] = field(default_factory=dict)  # generated files, by their path in the tree

    def __post_init__(self) -> None:
        for name in self.wheels:
            check_wheel_name(name)
        for path in self.site:
            check_file_path(path)
        for name in self.repos:
            RepoName.parse(name)

    def to_bytes(self) -> bytes:
        return dump_json({"schema": INDEX_SCHEMA, **asdict(self)})

    @classmethod
    def from_bytes(cls, data: bytes, *, origin: str) -> Index:
        """Read an index; one of an older schema is upgraded on the way."""
        try:
            value = _read(data, origin=origin)
            wheels = {k: _build(WheelEntry, v, origin=f"{origin}: {k}") for k, v in value["wheels"].items()}
            repos = {}
            for name, entry in value["repos"].items():
                revisions = {
                    sha: _build(Revision, item, origin=f"{origin}: {name}@{sha}")
                    for sha, item in entry["revisions"].items()
                }
                repos[name] = _build(Repo, {**entry, "revisions": revisions}, origin=f"{origin}: {name}")
            site = {path: _build(FileEntry, item, origin=f"{origin}: {path}") for path, item in value["site"].items()}
        except (KeyError, AttributeError, TypeError) as error:
            raise IntegrityError(f"{origin}: malformed index: {error!r}") from error
        return _build(cls, {**value, "wheels": wheels, "repos": repos, "site": site}, origin=origin)

    def repo(self, name: str) -> Repo:
        if name not in self.repos:
            known = ", ".join(sorted(self.repos)) or "none"
            if name.endswith(".whl"):
                raise HubError(f"no wheel {name!r} in this hub", hint="flash-attn3 hub list --names")
            raise HubError(f"no repository {name!r} in this hub (there are: {known})", hint="flash-attn3 hub list")
        return self.repos[name]

    def with_wheel(self, name: str, entry: WheelEntry | None) -> Index:
        """This index with a wheel added, replaced or (None) taken out."""
        wheels = {key: value for key, value in self.wheels.items() if key != name}
        return replace(self, wheels=wheels if entry is None else {**wheels, name: entry})

    def with_repo(self, name: str, entry: Repo | None) -> Index:
        """This index with a repository added, replaced or (None) taken out."""
        repos = {key: value for key, value in self.repos.items() if key != name}
        return replace(self, repos=repos if entry is None else {**repos, name: entry})

    def revisions(self) -> Iterator[tuple[str, str, Revision]]:
        """(repository, revision's name, revision) of everything."""
        for name, repo in sorted(self.repos.items()):
            for sha, revision in repo.revisions.items():
                yield name, sha, revision
