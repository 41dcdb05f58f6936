"""torch's stable-ABI headers: a few folders of one pinned wheel, of which only the needed parts are fetched."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ci.cache.archive import unpack_zip
from ci.cache.folders import make_read_only
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
    """The pinned headers, proven equal to the pinned git tree. Raises FetchError."""
    pin = (pins or read_pins()).torch_headers

    def wrong(folder: Path) -> str:
        return str(compare(pin.files, scan(folder)))

    def fill(work: Path) -> None:
        _unpack_headers(pin, work, settings)
        if found := wrong(work):
            raise FetchError(f"the headers in {pin.wheel.filename} are not the pinned tree {pin.id}: {found}")
        make_read_only(work)
        settings.narrate.note(f"torch {pin.version} headers: git tree {pin.id[:7]} verified")

    folder = settings.provide(f"torch-headers/{pin.id}", f"torch {pin.version} headers", fill, wrong=wrong)
    return HeaderTree(folder=folder, id=pin.id, version=pin.version)


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
