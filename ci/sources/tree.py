"""What fetching gives: upstream's two trees, byte for byte those of the lock."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ci.sources.lock import SourceLock


@dataclass(frozen=True, kw_only=True)
class SourceTree:
    """Pristine sources in the content cache: read-only and shared, so copy before editing."""

    lock: SourceLock
    hopper: Path
    cutlass_include: Path
    route: str  # "cache", or the route that filled it: "checkout", "sdist", "git"
    licenses: tuple[Path, ...]  # licence texts to ship with a binary made from the trees
