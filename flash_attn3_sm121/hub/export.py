"""`flash-attn3 hub export`: the tree of the current generation in a folder of its own, for nginx or an object store."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from flash_attn3_sm121.errors import HubError
from flash_attn3_sm121.files import put_file
from flash_attn3_sm121.hub.generation import upgrade
from flash_attn3_sm121.hub.site import tree
from flash_attn3_sm121.hub.site.nginx import nginx_conf
from flash_attn3_sm121.hub.store import Hub
from flash_attn3_sm121.hub.trust import trusted

MARKER = ".flash-attn3-export"
OURS = frozenset({MARKER, "trees", "www", "nginx.conf"})
LISTEN = "127.0.0.1:8080"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The result of an export."""

    target: str
    generation: int
    files: int
    size: int
    repos: tuple[str, ...]
    wheels: int


def export(hub: Hub, target: Path, *, listen: str = LISTEN) -> Exported:
    """Write the current generation to `target`, beside an earlier export's, and have `www` there show it.

    Every object is hashed before it is linked or copied. `nginx.conf` is the same from export to export.

    Raises:
        HubError: There are other things in the folder: they would be served, or lost.
        IntegrityError: An object is not what its name says, or nothing trusted signed the generation.
    """
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / MARKER).is_file())):
        raise HubError(f"{target} is not empty and not an export", hint="name an empty or a new folder")
    foreign = sorted(path.name for path in target.iterdir() if path.name not in OURS) if target.is_dir() else []
    if foreign:
        raise HubError(f"{target} holds what no export wrote: {foreign[0]}", hint="move it away; nothing was changed")
    upgrade(hub)
    current = trusted(hub)
    index = current.index
    target.mkdir(parents=True, exist_ok=True)
    (target / MARKER).write_text(f"generation {index.generation}\n", encoding="ascii")
    trees = tree.Trees(root=target.absolute())
    if trees.current != index.generation:
        tree.write(hub, current, into=trees, checked=True)
    put_file(target / "nginx.conf", nginx_conf(target.absolute(), listen))
    trees.swap(index.generation)
    tree.drop(trees, [index])
    files, size = _measure(target)
    return Exported(
        target=str(target),
        generation=index.generation,
        files=files,
        size=size,
        repos=tuple(sorted(index.repos)),
        wheels=len(index.wheels),
    )


def _measure(root: Path) -> tuple[int, int]:
    """(files, bytes) below a folder. Hard links count once."""
    seen: dict[int, int] = {}
    count = 0
    for folder, _, names in os.walk(root):
        for name in names:
            info = os.lstat(os.path.join(folder, name))  # noqa: PTH118
            count += 1
            seen[info.st_ino] = info.st_size
    return count, sum(seen.values())
