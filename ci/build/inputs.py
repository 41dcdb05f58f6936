"""What a build starts from, gathered in one place: sources, edits, toolchain, torch's headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ci.sources import SourceTree
from ci.sources.lock import SourceLock
from ci.sources.patched import Edited
from ci.toolchain import Toolchain


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything that decides the bytes of a library, beside the plan."""

    tree: SourceTree
    edited: Edited
    toolchain: Toolchain
    torch_headers: Path
    torch_headers_id: str

    @property
    def lock_document(self) -> Mapping[str, object]:
        """The pin as provenance shows it."""
        lock: SourceLock = self.tree.lock
        return {
            "upstream": {"url": lock.upstream.url, "commit": lock.upstream.commit},
            "cutlass": {"url": lock.cutlass.url, "commit": lock.cutlass.commit},
            "trees": {tree.path: tree.id for tree in lock.trees},
        }
