"""A seal on a cache entry: what it held when it was made, so that a later change is seen at the cost of a stat a file.

Where size and time still fit a file is taken as unchanged; where they don't, its content decides.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

NAME = "seal.json"


def write_seal(entry: Path) -> None:
    """Record every file below `entry`. The last thing done before the entry is renamed into place."""
    files = {path: [*_stat(entry / path), _digest(entry / path)] for path in _files(entry)}
    (entry / NAME).write_text(json.dumps(files, indent=0, sort_keys=True), encoding="utf-8")


def damage(entry: Path) -> list[str]:
    """What is wrong with a sealed entry: an empty list means that it is as it was made."""
    try:
        sealed: dict[str, list[object]] = json.loads((entry / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [f"{NAME}: {error}"]
    present = set(_files(entry))
    wrong = [f"{path}: extra" for path in sorted(present - set(sealed))]
    for path, (mode, size, mtime, digest) in sealed.items():
        if path not in present:
            wrong.append(f"{path}: missing")
            continue
        now_mode, now_size, now_mtime = _stat(entry / path)
        if (now_mode, now_size) != (mode, size) or (now_mtime != mtime and _digest(entry / path) != digest):
            wrong.append(f"{path}: changed")
    return wrong


def _files(entry: Path) -> list[str]:
    found = []
    for folder, _, names in os.walk(entry):
        found += [os.path.relpath(os.path.join(folder, name), entry) for name in names]  # noqa: PTH118
    return sorted(name for name in found if name != NAME)


def _stat(path: Path) -> tuple[int, int, int]:
    status = path.lstat()
    return status.st_mode, status.st_size, status.st_mtime_ns


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as source:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
