"""`flash-attn3 hub env`: the LOCAL_KERNELS line that points unmodified clients at checkouts of this hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flash_attn3_sm121.errors import HubError
from flash_attn3_sm121.hub.checkout import checkout, resolve
from flash_attn3_sm121.hub.index import Index
from flash_attn3_sm121.hub.store import Hub

COVERS = (
    "kernels 0.13 to 0.16: get_kernel, bare or with arguments (not has_kernel)",
    "kernels 0.17 and newer: get_kernel and has_kernel, with version= or revision= only",
    "kernels 0.9 to 0.12: not at all; use `flash-attn3 run`, which covers every version",
)


def local_kernels(hub: Hub, index: Index, repos: Sequence[str], *, under: Path | None = None, old: str = "") -> str:
    """The value of LOCAL_KERNELS: `repo=folder` joined by colons, other entries of `old` kept in front."""
    entries = [entry for entry in old.split(":") if entry and entry.partition("=")[0] not in repos]
    for name in repos:
        folder = checkout(hub, resolve(hub, index, name), under=under)
        if ":" in str(folder):
            raise HubError(f"LOCAL_KERNELS can't name {folder}: it separates entries with colons", hint="use --dir")
        entries.append(f"{name}={folder}")
    return ":".join(entries)
