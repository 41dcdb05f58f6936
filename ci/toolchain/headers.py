"""torch's stable-ABI headers: a few folders of one pinned wheel, of which only the needed parts are fetched."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ci.cache.archive import unpack_zip
from ci.cache.folders import locked, make_read_only, making
from ci.index.pip import download
from ci.settings import Settings
from ci.sources.treeid import compare, scan
from ci.toolchain.pins import Pins, TorchHeaders, read_pins
from flash_attn3_sm121.errors import FetchError


@dataclass(frozen=True, kw_only=True)
class HeaderTree:
    """An include folder (for -isystem) in the content cache, and its git tree id."""

    folder: Path
    id: str
    version: str  # torch's


def torch_headers(settings: Settings, *, pins: Pins | None = None) -> HeaderTree:
    """The pinned headers, proven. Raises FetchError."""
    pin = (pins or read_pins()).torch_headers
    return HeaderTree(folder=_tree(pin, settings), id=pin.id, version=pin.version)


def _tree(pin: TorchHeaders, settings: Settings) -> Path:
    """torch's include folder, proven equal to the pinned git tree; only the needed parts of the wheel are fetched."""
    key, cache, narrate = f"torch-headers/{pin.id}", settings.cache, settings.narrate
    entry = cache / key
    with locked(cache, key, waiting=lambda: narrate.note("waiting for another run that fetches torch's headers")):
        if entry.is_dir():
            wrong = compare(pin.files, scan(entry))
            if not wrong:
                narrate.note(f"torch {pin.version} headers: from the cache")
                return entry
            narrate.note(f"torch {pin.version} headers: damaged in the cache, fetched again: {wrong}")
        with making(cache, key) as work:
            _unpack_headers(pin, work, settings)
            wrong = compare(pin.files, scan(work))
            if wrong:
                raise FetchError(f"the headers in {pin.wheel.filename} are not the pinned tree {pin.id}: {wrong}")
            make_read_only(work)
    narrate.note(f"torch {pin.version} headers: git tree {pin.id[:7]} verified")
    return entry


def _unpack_headers(pin: TorchHeaders, work: Path, settings: Settings) -> None:
    heads = {f"{pin.prefix}/{folder}": folder for folder in pin.folders}
    if not settings.offline:
        from ci.index.members import opened  # loads requests: only where something is really fetched

        try:
            with opened(pin.wheel, settings) as remote:
                unpack_zip(remote, pin.wheel.filename, heads, work)
            return
        except FetchError as error:
            settings.narrate.note(f"{error}\nfetching the whole wheel instead")
            for folder in pin.folders:
                shutil.rmtree(work / folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=work.parent, prefix=f"{work.name}.") as folder:
        download([pin.wheel], Path(folder), settings)
        unpack_zip(Path(folder) / pin.wheel.filename, pin.wheel.filename, heads, work)
