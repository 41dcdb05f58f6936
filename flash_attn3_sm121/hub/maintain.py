"""The upkeep of a hub: check it, remove and prune, collect what is not used, sign, roll back."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from flash_attn3_sm121.errors import HubError, IntegrityError
from flash_attn3_sm121.files import hash_file
from flash_attn3_sm121.hub.generation import commit
from flash_attn3_sm121.hub.index import FileEntry, Index, Repo, Revision
from flash_attn3_sm121.hub.layout import PACKAGE
from flash_attn3_sm121.hub.sign import SigningKey, TrustedKeys
from flash_attn3_sm121.hub.site import tree
from flash_attn3_sm121.hub.store import KEEP_GENERATIONS, Hub


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """The result of `check`. `orphans` counts objects that this generation does not use, which is no fault."""

    generation: int
    objects: int
    size: int
    wheels: int
    revisions: int
    orphans: int
    signed: bool
    findings: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        return not self.findings


def revision_objects(hub: Hub, name: str, sha: str, revision: Revision) -> Iterator[tuple[str, FileEntry]]:
    """Yield (name for messages, object) of a revision. Raises IntegrityError for a damaged manifest."""
    who = f"{name}@{sha[:12]}"
    files = hub.manifest(revision.manifest).files
    yield f"{who} manifest", hub.manifest_entry(revision.manifest)
    for inner, entry in files.items():
        yield f"{who} {inner}", entry
    if revision.listing:
        yield f"{who} list of generated files", hub.manifest_entry(revision.listing)
    yield from hub.generated(revision).items()


def needed(hub: Hub, index: Index) -> Iterator[FileEntry]:
    """Yield every object that an index refers to. Raises IntegrityError for a damaged manifest."""
    for _, entry in tree.files(index):
        yield entry
    for name, sha, revision in index.revisions():
        for _, entry in revision_objects(hub, name, sha, revision):
            yield entry


def check(hub: Hub, keys: TrustedKeys | None = None) -> CheckReport:
    """Hash everything again; with keys, the generation must be signed by one of them."""
    index = hub.index()
    findings: list[str] = []
    wanted = sorted(tree.files(index), key=lambda item: item[0])
    for name, sha, revision in index.revisions():
        try:
            wanted += revision_objects(hub, name, sha, revision)
        except IntegrityError as error:
            findings.append(f"{name}@{sha[:12]} manifest: {error.args[0]}")
    state: dict[str, str] = {}
    size = 0
    for who, entry in wanted:
        if entry.sha256 not in state:
            state[entry.sha256] = _fault(hub, entry)
            size += entry.size
        if state[entry.sha256]:
            findings.append(f"{who}: {state[entry.sha256]}")
    if not findings:
        findings += tree.damage(hub, index)
    strays, orphans = _strays(hub, set(state) | {revision.manifest for _, _, revision in index.revisions()})
    findings += strays
    if keys is not None:
        try:
            hub.trusted(keys)
        except IntegrityError as error:
            findings.append(str(error.args[0]))
    return CheckReport(
        generation=index.generation,
        objects=len(state),
        size=size,
        wheels=len(index.wheels),
        revisions=sum(1 for _ in index.revisions()),
        orphans=orphans,
        signed=keys is not None,
        findings=tuple(findings),
    )


def _fault(hub: Hub, entry: FileEntry) -> str:
    path = hub.layout.object(entry.sha256)
    if path.is_symlink():
        return f"{path} is a symbolic link"
    if not path.is_file():
        return f"object {entry.sha256} is missing"
    sha256, size = hash_file(path)
    if sha256 != entry.sha256:
        return f"content has sha256 {sha256}, expected {entry.sha256}"
    return "" if size == entry.size else f"content has {size} bytes, expected {entry.size}"


def _strays(hub: Hub, known: set[str]) -> tuple[list[str], int]:
    """Files that do not belong into a hub, and the number of objects that this generation does not use."""
    strays, orphans = [], 0
    for path in sorted(hub.layout.objects.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        name = hub.layout.parse_object(path)
        if name is None or path.is_symlink():
            strays.append(f"{path} does not belong into a hub")
        elif name not in known:
            orphans += 1
    return strays, orphans


def remove(
    hub: Hub, names: list[str], *, key: SigningKey | None = None, unsigned: bool = False
) -> tuple[Index, list[str]]:
    """Take out wheels (`X.whl`), repositories (`ORG/NAME`) or single revisions (`ORG/NAME@REVISION`)."""
    with hub.transaction(key, unsigned=unsigned) as txn:
        index, done = txn.base, []
        for name in names:
            if name in index.wheels:
                index = index.with_wheel(name, None)
                done.append(f"wheel {name}")
                continue
            repo_name, _, revision = name.partition("@")
            repo = index.repo(repo_name)
            index = index.with_repo(repo_name, _without(repo_name, repo, revision) if revision else None)
            done.append(f"revision {name}" if revision else f"repository {repo_name}")
        return commit(txn, index), done


def _without(name: str, repo: Repo, revision: str) -> Repo | None:
    """The repository without a revision; None when it was the only one."""
    sha = repo.resolve(revision) or next(
        (s for s in repo.revisions if len(revision) >= 7 and s.startswith(revision)), None
    )
    if sha is None:
        raise HubError(f"{name} has no revision {revision!r}", hint=f"flash-attn3 hub show {name}")
    if repo.refs.get("main") == sha and len(repo.revisions) > 1:
        raise HubError(f"{name}@{sha[:12]} is what `main` names", hint="publish a newer one, or remove the repository")
    if len(repo.revisions) == 1:
        return None
    refs = {ref: target for ref, target in repo.refs.items() if target != sha}
    return replace(repo, refs=refs, revisions={key: value for key, value in repo.revisions.items() if key != sha})


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What `gc` removed, or would remove."""

    generations: int
    objects: int
    size: int
    unfinished: int


def collect(hub: Hub, *, keep: int = KEEP_GENERATIONS, dry_run: bool = False) -> Collected:
    """Remove old generations, objects that no kept generation needs, and unfinished writes.

    A dry run takes no lock and writes nothing; what somebody publishes meanwhile may be counted.
    """
    with contextlib.nullcontext() if dry_run else hub.transaction():
        layout, current = hub.layout, hub.generation()
        numbers = hub.generations()
        kept = [hub.read_generation(number).index for number in [n for n in numbers if n <= current][-keep:]]
        wanted = {entry.sha256 for index in kept for entry in needed(hub, index)}
        dropped = sorted(set(numbers) - {index.generation for index in kept})
        garbage = [
            path
            for path in layout.objects.glob("*/*")
            if (name := layout.parse_object(path)) is not None and name not in wanted
        ]
        unfinished = list(layout.tmp.iterdir())
        size = sum(path.lstat().st_size for path in garbage)
        if not dry_run:
            for number in dropped:
                layout.generation(number).unlink()
                layout.signature(number).unlink(missing_ok=True)
            tree.drop(tree.Trees(root=layout.root), kept)
            for path in (*garbage, *unfinished):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
    return Collected(generations=len(dropped), objects=len(garbage), size=size, unfinished=len(unfinished))


def sign(hub: Hub, key: SigningKey) -> Index:
    """Publish the same content again, signed with `key`. Nothing is done where that key has signed it already."""
    with hub.transaction(key) as txn:
        if txn.base.generation == 0:
            raise HubError("there is nothing to sign yet", hint="flash-attn3 hub publish WHEEL...")
        return commit(txn, txn.base)


def rollback(hub: Hub, to: int | None = None, *, key: SigningKey | None = None, unsigned: bool = False) -> Index:
    """Publish what an earlier generation held, as a new one: numbers only go up, so nobody takes it for a replay.

    Args:
        hub: The hub.
        to: The generation to go back to. None means the one before the current, or, where CURRENT or what it names
            is damaged, the newest that can be read.
        key: Signs the new generation.
        unsigned: Allow an unsigned one in a signed hub.
    """
    try:
        hub.index()
    except IntegrityError:
        hub.recover()
        tree.heal(hub)
        if to is None:
            return hub.index()
    with hub.transaction(key, unsigned=unsigned) as txn:
        return commit(txn, replace(_earlier(hub, txn.base.generation, to), hub=txn.base.hub))


def rollback_target(hub: Hub, to: int | None = None) -> Index:
    """The generation that `rollback` would go back to; its errors, and no lock: nothing is written."""
    try:
        current = hub.index().generation
    except IntegrityError:
        newest = hub.newest_readable()
        if to is None:
            return newest
        current = newest.generation
    return _earlier(hub, current, to)


def _earlier(hub: Hub, current: int, to: int | None) -> Index:
    """A generation before the current one that is whole; the last of them, where none is asked for."""
    earlier = [number for number in hub.generations() if number < current]
    if not earlier:
        raise HubError(f"generation {current} is the only one that is kept: nothing to go back to")
    number = to if to is not None else max(earlier)
    if number not in earlier:
        kept = ", ".join(map(str, earlier))
        raise HubError(f"there is no generation {number} to go back to (kept: {kept})")
    old = hub.read_generation(number).index
    for entry in needed(hub, replace(old, site={})):
        if not hub.layout.object(entry.sha256).is_file():
            raise IntegrityError(f"generation {number} is not whole any more: object {entry.sha256} is missing")
    return old


def prune(hub: Hub, keep: int, *, key: SigningKey | None = None, unsigned: bool = False) -> tuple[Index, list[str]]:
    """Take out all but the newest releases, and of each repository the revisions that no kept ref names.

    Args:
        hub: The hub.
        keep: How many releases stay, counted by version.
        key: Signs the new generation.
        unsigned: Allow an unsigned one in a signed hub.
    """
    with hub.transaction(key, unsigned=unsigned) as txn:
        index, gone = pruned(txn.base, keep)
        return commit(txn, index), gone


def pruned(base: Index, keep: int) -> tuple[Index, list[str]]:
    """An index with the `keep` newest releases alone, and the names of what is no longer in it."""
    from packaging.version import Version

    index, gone = base, []
    releases = {Version(wheel.version).public for wheel in base.wheels.values() if wheel.name == PACKAGE}
    old = set(sorted(releases, key=Version)[:-keep])
    for name, wheel in base.wheels.items():
        if wheel.name == PACKAGE and Version(wheel.version).public in old:
            index = index.with_wheel(name, None)
            gone.append(f"wheel {name}")
    for name, repo in base.repos.items():
        refs = {ref: sha for ref, sha in repo.refs.items() if ref not in old or sha == repo.refs.get("main")}
        revisions = {sha: item for sha, item in repo.revisions.items() if sha in refs.values()}
        gone += [f"revision {name}@{sha[:12]}" for sha in repo.revisions if sha not in revisions]
        index = index.with_repo(name, replace(repo, refs=refs, revisions=revisions))
    return index, gone
