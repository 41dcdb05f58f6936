"""Put verified wheels into the hub: the pip side and the kernel side in one generation, or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.version import Version

from flash_attn3_sm121.errors import HubError, IntegrityError
from flash_attn3_sm121.hub.generation import commit
from flash_attn3_sm121.hub.index import FileEntry, Index, Manifest, Repo, Revision, WheelEntry
from flash_attn3_sm121.hub.layout import PACKAGE, RepoName
from flash_attn3_sm121.hub.sign import SigningKey
from flash_attn3_sm121.hub.store import Hub, Rehearsal, Transaction, now
from flash_attn3_sm121.hub.variants import ALIASES, ANY, INTERFACE_VERSION, Flavour, Payload, compose
from flash_attn3_sm121.hub.wheelfile import WheelFile, read_wheel

MAIN = "main"
VERSION_REF = f"v{INTERFACE_VERSION}"


@dataclass(frozen=True, kw_only=True)
class Published:
    """The result of a publish."""

    generation: int
    changed: bool
    wheels: Mapping[str, WheelEntry]
    repos: Mapping[str, str]  # repository -> revision that holds these wheels
    skipped: tuple[str, ...]  # warnings


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    payloads: Mapping[str, Payload]
    wheels: tuple[str, ...]


def judge(paths: Iterable[Path], *, allow_unverified: bool = False) -> list[WheelFile]:
    """Read the wheels and refuse what must not be published."""
    wheels: dict[str, WheelFile] = {}
    for path in paths:
        if not path.exists():
            raise HubError(f"there is no file {path}", hint="`make wheel` builds one into wheels/")
        wheel = read_wheel(path)
        proxies = [item.family for item in wheel.facts if item.proxy]
        if proxies:
            raise IntegrityError(
                f"{wheel.filename} is a proxy build (family {', '.join(proxies)} with another device's machine code)",
                hint="proxy builds are for tests only; publish a wheel of `make wheel`",
            )
        if not wheel.verified and not allow_unverified:
            raise IntegrityError(
                f"{wheel.filename} is not verified: {wheel.verify}",
                hint="build it with `make wheel`, which verifies, or say --allow-unverified",
            )
        wheels[wheel.filename] = wheel
    if not wheels:
        raise HubError("no wheel to publish", hint="flash-attn3 hub publish wheels/*.whl")
    return list(wheels.values())


def wheel_entry(wheel: WheelFile, file: FileEntry, metadata: FileEntry, generation: int) -> WheelEntry:
    def joined(values: Iterable[str]) -> str:
        return ", ".join(sorted(set(values)))

    return WheelEntry(
        sha256=file.sha256,
        size=file.size,
        metadata_sha256=metadata.sha256,
        metadata_size=metadata.size,
        name=wheel.project,
        version=wheel.version,
        requires_python=wheel.requires_python,
        platform=wheel.platform,
        families=wheel.families,
        images=wheel.images,
        profile=joined(item.profile for item in wheel.facts),
        cuda=joined(item.cuda for item in wheel.facts),
        upstream=joined(item.upstream for item in wheel.facts),
        verify=wheel.verify if wheel.verified else "unverified",
        checks=wheel.checks,
        published=now(),
        added=generation,
    )


def _add_payload(txn: Transaction, wheel: WheelFile, platform: str) -> Payload:
    native = platform != ANY
    members = wheel.members(wheel.kernel_files(native=native))
    files = {inner: txn.add_stream(stream) for inner, stream in members}
    return Payload(
        platform=platform,
        wheel=wheel.filename,
        families=wheel.families if native else (),
        images=wheel.images if native else (),
        profile=wheel.facts[0].profile if native and wheel.facts else "",
        cuda=wheel.facts[0].cuda if native and wheel.facts else "",
        files=files,
    )


def choose(index: Index, version: str, fresh: Sequence[str]) -> dict[str, str]:
    """Platform -> the wheel that serves a release there: the last of `fresh`, else the one published last."""
    order = {name: position for position, name in enumerate(fresh, start=1)}
    chosen: dict[str, tuple[tuple[int, int, str], str]] = {}
    for name, entry in index.wheels.items():
        if entry.name != PACKAGE or Version(entry.version).public != version:
            continue
        rank = (order.get(name, 0), entry.added, name)
        if entry.platform not in chosen or rank > chosen[entry.platform][0]:
            chosen[entry.platform] = (rank, name)
    return {platform: name for platform, (_, name) in chosen.items()}


def gather_payloads(txn: Transaction, index: Index, chosen: Mapping[str, str]) -> dict[str, Payload]:
    """Store the chosen wheels' packages. Without a pure wheel, the Python-only payload is taken from another one."""
    opened: dict[str, WheelFile] = {}
    for platform, name in chosen.items():
        entry = index.wheels[name]
        held = txn.verified(FileEntry(sha256=entry.sha256, size=entry.size))
        opened[platform] = read_wheel(held, name=name)
    payloads = {platform: _add_payload(txn, wheel, platform) for platform, wheel in sorted(opened.items())}
    if ANY not in payloads:
        payloads[ANY] = _add_payload(txn, opened[min(opened)], ANY)
    return payloads


def with_revision(repo: Repo | None, flavour: Flavour, revision: str, entry: Revision) -> Repo:
    """The repository with a revision added; `main` and `v1` follow the highest release."""
    base = repo or Repo(flavour=str(flavour), refs={}, revisions={})
    revisions = {**base.revisions, revision: base.revisions.get(revision, entry)}
    refs = {**base.refs, entry.version: revision}
    head = base.refs.get(MAIN)
    if head is None or Version(base.revisions[head].version) <= Version(entry.version):
        refs |= {MAIN: revision, VERSION_REF: revision}
    return replace(base, refs=refs, revisions=revisions)


def _with_wheel(index: Index, filename: str, entry: WheelEntry) -> Index:
    """The index with a wheel. One of the same bytes keeps the entry that it has."""
    old = index.wheels.get(filename)
    return index if old is not None and old.sha256 == entry.sha256 else index.with_wheel(filename, entry)


def _with_release(txn: Transaction, index: Index, target: tuple[RepoName, Flavour, str], chosen: _Chosen) -> Index:
    name, flavour, version = target
    repo = index.repos.get(str(name))
    if repo is not None and repo.flavour != flavour:
        raise HubError(
            f"{name} is a repository of flavour {repo.flavour}, not {flavour}",
            hint=f"flash-attn3 hub remove {name}, then publish again",
        )
    files = compose(name, flavour, version, chosen.payloads, txn.add_bytes)
    manifest = Manifest(flavour=str(flavour), version=version, files=files)
    entry = Revision(
        manifest=txn.add_bytes(manifest.to_bytes()).sha256,
        version=version,
        created=now(),
        added=txn.next,
        wheels=chosen.wheels,
    )
    return index.with_repo(str(name), with_revision(repo, flavour, manifest.revision, entry))


@dataclass(frozen=True, kw_only=True)
class _Composed:
    """The next generation, before it is committed."""

    index: Index
    repos: Mapping[str, str]
    warnings: tuple[str, ...]


def _compose(txn: Transaction, wheels: Sequence[WheelFile], repos: Mapping[RepoName, Flavour]) -> _Composed:
    index = txn.base
    names = {RepoName.parse(name): flavour for name, flavour in ALIASES.items()}
    names |= {RepoName.parse(name): Flavour(repo.flavour) for name, repo in index.repos.items()} | dict(repos)
    for wheel in wheels:
        entry = wheel_entry(wheel, txn.add_file(wheel.path), txn.add_bytes(wheel.metadata), txn.next)
        index = _with_wheel(index, wheel.filename, entry)
    revisions: dict[str, str] = {}
    warnings: list[str] = []
    # FlashAttention-2's names are on the pip side only: get_kernel knows no such repository.
    kernels = [wheel for wheel in wheels if wheel.project == PACKAGE]
    if repos and not kernels:
        raise HubError(
            f"no wheel of {PACKAGE} to fill {', '.join(map(str, repos))} with: {wheels[0].filename} has no kernel"
        )
    for version in sorted({wheel.public_version for wheel in kernels}, key=Version):
        chosen = choose(index, version, [wheel.filename for wheel in kernels])
        warnings += [
            f"{wheel.filename} is on the pip side only: {chosen[wheel.platform]} serves {wheel.platform}"
            for wheel in kernels
            if wheel.public_version == version and chosen[wheel.platform] != wheel.filename
        ]
        picked = _Chosen(payloads=gather_payloads(txn, index, chosen), wheels=tuple(sorted(set(chosen.values()))))
        for name, flavour in sorted(names.items()):
            index = _with_release(txn, index, (name, flavour, version), picked)
            revisions[str(name)] = index.repos[str(name)].refs[version]
    newest, lost = left_behind(index)
    if lost and newest in {wheel.public_version for wheel in kernels}:
        warnings.append(
            f"`main` is release {newest} now, which has no wheel for {', '.join(lost)}: "
            "get_kernel gives those machines the fallbacks until one is published"
        )
    return _Composed(index=index, repos=revisions, warnings=tuple(warnings))


def left_behind(index: Index) -> tuple[str, list[str]]:
    """The newest release, and the platforms that only older ones have a wheel for."""
    releases: dict[str, set[str]] = {}
    for entry in index.wheels.values():
        if entry.name == PACKAGE:
            releases.setdefault(Version(entry.version).public, set()).add(entry.platform)
    newest = max(releases, key=Version, default="")
    return newest, sorted(set().union(*releases.values()) - releases.get(newest, set()) - {ANY})


def publish(
    hub: Hub,
    wheels: Sequence[WheelFile],
    *,
    repos: Mapping[RepoName, Flavour] | None = None,
    key: SigningKey | None = None,
    unsigned: bool = False,
) -> Published:
    """Publish judged wheels under the known names and `repos`: one generation, or none if nothing is new.

    Args:
        hub: Where to.
        wheels: What `judge` let through.
        repos: More repositories, and the flavour of each.
        key: Signs the generation.
        unsigned: Allow a publish without a key to a hub that is signed.

    Raises:
        HubError: The hub cannot take them as asked.
        IntegrityError: Something that is in the hub already was tampered with.
    """
    with hub.transaction(key, unsigned=unsigned) as txn:
        before = txn.base.generation
        composed = _compose(txn, wheels, repos or {})
        done = commit(txn, composed.index)
    return Published(
        generation=done.generation,
        changed=done.generation != before,
        wheels={wheel.filename: done.wheels[wheel.filename] for wheel in wheels},
        repos=composed.repos,
        skipped=composed.warnings,
    )


def rehearse(root: Path, wheels: Sequence[WheelFile], repos: Mapping[RepoName, Flavour]) -> dict[RepoName, Manifest]:
    """What `repos` would hold after a publish to the hub at `root`. Nothing is written; the hub need not exist."""
    txn = Rehearsal.of(root)
    index = _compose(txn, wheels, repos).index
    heads = {name: index.repos[str(name)] for name in repos}
    manifests = {name: repo.revisions[repo.refs[MAIN]].manifest for name, repo in heads.items()}
    return {name: txn.manifest(sha256) for name, sha256 in manifests.items()}
