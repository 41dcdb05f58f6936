"""Toolkit folders made from pinned packages: fetched, checked, unpacked into the content cache, sealed.

A seal records what an entry held when it was made, so that a later change is seen at the cost of a stat a file. Where
size and time still fit, a file is taken as unchanged; where they do not, its content decides.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ci.cache.archive import unpack_zip
from ci.cache.folders import file_sha256, make_read_only
from ci.index import Wanted
from ci.index.pip import download
from ci.settings import Settings
from ci.toolchain.pins import Pins
from flash_attn3_sm121.errors import FetchError

SEAL = "seal.json"


def identity(wheels: Sequence[Wanted]) -> str:
    """One hash for a set of wheels, whatever their order."""
    return hashlib.sha256("\n".join(sorted(wheel.sha256 for wheel in wheels)).encode()).hexdigest()


def unpacked(wheels: Sequence[Wanted], pins: Pins, settings: Settings, *, label: str) -> Path:
    """A toolkit's root that holds all these wheels; what was tampered with is noticed, reported and made anew.

    Wheels that were downloaded before a run was killed are used by the next one.
    """
    downloads = settings.cache / "downloads" / identity(wheels)

    def fill(work: Path) -> None:
        download(wheels, downloads, settings)
        for number, wheel in enumerate(wheels, start=1):
            settings.narrate.note(f"unpacking {wheel.filename} ({number} of {len(wheels)})")
            info = "-".join(wheel.filename.split("-")[:2]) + ".dist-info/licenses"
            heads = {f"{pins.prefix}/{part}": f"root/{part}" for part in ("bin", "include", "lib", "nvvm")}
            heads[info] = f"licenses/{wheel.project}"
            if unpack_zip(downloads / wheel.filename, wheel.filename, heads, work) == 0:
                raise FetchError(f"{wheel.filename}: nothing below {pins.prefix}/")
        make_read_only(work)
        write_seal(work)
        shutil.rmtree(downloads)

    key = f"toolchains/{identity(wheels)}"
    return settings.provide(key, label, fill, wrong=lambda entry: ", ".join(damage(entry)[:5])) / "root"


def write_seal(entry: Path) -> None:
    """Record every file below `entry`. The last thing done before the entry is renamed into place."""
    files = {path: [*_stat(entry / path), file_sha256(entry / path)] for path in _files(entry)}
    (entry / SEAL).write_text(json.dumps(files, indent=0, sort_keys=True), encoding="utf-8")


def damage(entry: Path) -> list[str]:
    """What is wrong with a sealed entry: an empty list means that it is as it was made."""
    try:
        sealed: dict[str, list[object]] = json.loads((entry / SEAL).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [f"{SEAL}: {error}"]
    present = set(_files(entry))
    wrong = [f"{path}: extra" for path in sorted(present - set(sealed))]
    for path, (mode, size, mtime, digest) in sealed.items():
        if path not in present:
            wrong.append(f"{path}: missing")
            continue
        now_mode, now_size, now_mtime = _stat(entry / path)
        if (now_mode, now_size) != (mode, size) or (now_mtime != mtime and file_sha256(entry / path) != digest):
            wrong.append(f"{path}: changed")
    return wrong


def _files(entry: Path) -> list[str]:
    paths = []
    for folder, _, names in os.walk(entry):
        paths += [os.path.relpath(os.path.join(folder, name), entry) for name in names]  # noqa: PTH118
    return sorted(name for name in paths if name != SEAL)


def _stat(path: Path) -> tuple[int, int, int]:
    status = path.lstat()
    return status.st_mode, status.st_size, status.st_mtime_ns
