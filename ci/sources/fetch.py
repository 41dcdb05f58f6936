"""Get the locked sources: a local checkout, the content cache, the source distribution, git; in this order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ci.cache.folders import locked, make_read_only, making
from ci.settings import Settings
from ci.sources.lock import SourceLock, check_checkout, mismatch, pins, read_lock
from ci.sources.routes import ROUTES, Route, copy_checkout
from flash_attn3_sm121.errors import DiskError, FlashAttn3Error, SourceError


@dataclass(frozen=True, kw_only=True)
class SourceTree:
    """Pristine sources in the content cache: read-only and shared, so copy before editing."""

    lock: SourceLock
    hopper: Path
    cutlass_include: Path
    route: str  # "cache", or the route that filled it: "checkout", "sdist", "git"
    licenses: tuple[Path, ...]  # licence texts to ship with a binary made from the trees


def fetch(
    lock: SourceLock, settings: Settings, *, source: Path | None = None, routes: Sequence[Route] = ROUTES
) -> SourceTree:
    """The locked trees, in the content cache, read-only.

    Args:
        lock: what is wanted.
        source: a checkout to copy from. One that does not fit the lock stops everything: another route would build
            something else than what the user pointed at.
        routes: tried in this order where there is no `source`.

    Raises:
        SourceError: no route works; its text says what each of them said.
        DiskError: there is no room for them.
    """
    if source is not None:
        _check_source(source, lock)
    key, cache, narrate = f"sources/{lock.key}", settings.cache, settings.narrate
    with locked(cache, key, waiting=lambda: narrate.note("waiting for another run that fetches the sources")):
        trace: list[str] = []
        if _cached(cache / key, lock, trace):
            narrate.note(f"sources: {lock.title} from the cache")
            return _tree(cache / key, lock, "cache")
        if source is not None:
            with making(cache, key) as work:
                copy_checkout(source, lock, work)
                check_checkout(work, lock)
                make_read_only(work)
            narrate.note(f"sources: {lock.title} from {source}")
            return _tree(cache / key, lock, "checkout")
        for route in routes:
            try:
                with making(cache, key) as work:
                    route.fill(lock, work, settings)
                    check_checkout(work, lock)
                    make_read_only(work)
            except DiskError:
                raise  # no other route has more room
            except FlashAttn3Error as error:
                trace.append(f"{route.name}: {error}")
                continue
            narrate.note(f"sources: {lock.title} from {route.name}, git trees verified")
            return _tree(cache / key, lock, route.name)
    lines = "".join("\n  - " + line.replace("\n", "\n    ") for line in ["checkout: none was given", *trace])
    raise SourceError(
        f"no route gives the sources {lock.title}; tried:{lines}",
        hint="give a flash-attention checkout at that commit, submodules included: --source DIR (or FA3_SOURCE=DIR)",
    )


def _check_source(source: Path, lock: SourceLock) -> None:
    try:
        check_checkout(source, lock)
    except SourceError as error:
        hint = (
            "restore those files (`git status --ignored` shows them), or pin this tree instead: "
            f"python -m ci lock --source {source} --output own-lock.json, then --lock own-lock.json"
        )
        for name, path in pins().items():
            if not any(mismatch(source, tree) for tree in read_lock(path).trees):
                hint = f"it is the pin {name}: --pin {name} (PIN={name})"
        raise SourceError(f"the checkout {source} is not what the lock pins: {error}", hint=hint) from error


def _cached(entry: Path, lock: SourceLock, trace: list[str]) -> bool:
    """Whether the cache has the trees. They are hashed anew; a damaged entry is reported in `trace`, to be replaced."""
    if not entry.is_dir():
        trace.append("cache: not there yet")
        return False
    try:
        check_checkout(entry, lock)
    except SourceError as error:
        trace.append(f"cache: damaged, replaced: {error}")
        return False
    return True


def _tree(entry: Path, lock: SourceLock, route: str) -> SourceTree:
    return SourceTree(
        lock=lock,
        hopper=entry / lock.hopper.path,
        cutlass_include=entry / lock.cutlass_include.path,
        route=route,
        licenses=lock.licenses,
    )
