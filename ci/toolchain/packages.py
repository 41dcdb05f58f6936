"""Toolkit folders made from pinned packages: fetched, checked, unpacked into the content cache, sealed."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from ci.cache.archive import unpack_zip
from ci.cache.folders import locked, make_read_only, making
from ci.console import Narrator
from ci.index import Wanted
from ci.index.pip import download
from ci.toolchain.pins import Pins
from ci.toolchain.seal import damage, write_seal
from flash_attn3_sm121.errors import FetchError


def identity(wheels: Sequence[Wanted]) -> str:
    """One hash for a set of wheels, whatever their order."""
    return hashlib.sha256("\n".join(sorted(wheel.sha256 for wheel in wheels)).encode()).hexdigest()


def unpacked(
    wheels: Sequence[Wanted], pins: Pins, cache: Path, narrate: Narrator, *, label: str, offline: bool = False
) -> Path:
    """A toolkit's root that holds all these wheels; what was tampered with is noticed, reported and made anew.

    Wheels that were downloaded before a run was killed are used by the next one.
    """
    key = f"toolchains/{identity(wheels)}"
    entry = cache / key
    with locked(cache, key, waiting=lambda: narrate.note(f"waiting for another run that fetches {label}")):
        wrong = damage(entry) if entry.is_dir() else ["not there yet"]
        if not wrong:
            narrate.note(f"{label}: from the cache")
            return entry / "root"
        if entry.is_dir():
            narrate.note(f"{label}: damaged in the cache, fetched again: {', '.join(wrong[:5])}")
        downloads = cache / "downloads" / identity(wheels)
        download(wheels, downloads, narrate, offline=offline)
        with making(cache, key) as work:
            for number, wheel in enumerate(wheels, start=1):
                narrate.note(f"unpacking {wheel.filename} ({number} of {len(wheels)})")
                info = "-".join(wheel.filename.split("-")[:2]) + ".dist-info/licenses"
                heads = {
                    **{f"{pins.prefix}/{part}": f"root/{part}" for part in ("bin", "include", "lib", "nvvm")},
                    info: f"licenses/{wheel.project}",
                }
                if unpack_zip(downloads / wheel.filename, wheel.filename, heads, work) == 0:
                    raise FetchError(f"{wheel.filename}: nothing below {pins.prefix}/")
            make_read_only(work)
            write_seal(work)
        shutil.rmtree(downloads)
    return entry / "root"
