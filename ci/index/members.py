"""A wheel on a server as a zip file of which only the needed parts are fetched: remotezip, with reading ahead."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
from remotezip import PartialBuffer, RemoteFetcher, RemoteZip, RemoteZipError
from urllib3.exceptions import HTTPError

from ci.index import Wanted
from ci.index.pages import addresses, session_of, without_credentials
from ci.index.pip import pip_settings
from ci.settings import Settings
from flash_attn3_sm121.errors import FetchError

BLOCK = 2 << 20


class NoParts(FetchError):
    """No server sends parts of the file."""


class ReadAhead(RemoteFetcher):  # type: ignore[misc]  # remotezip is untyped
    """Asks for blocks. Torch's 264 headers lie side by side: a request for each takes 22 seconds instead of one."""

    start, data = 0, b""

    def fetch(self, data_range: tuple[int, int | None], stream: bool = False) -> Any:
        first, last = data_range
        if last is None:  # the end of the file, for the zip's directory
            return super().fetch(data_range, stream)
        if not self.start <= first <= last < self.start + len(self.data):
            self.start, self.data = first, super().fetch((first, max(last, first + BLOCK - 1))).read()
        part = self.data[first - self.start : last + 1 - self.start]
        return PartialBuffer(io.BytesIO(part), first, len(part), False)


@contextmanager
def opened(wanted: Wanted, settings: Settings) -> Iterator[zipfile.ZipFile]:
    """The wheel, its members fetched as they are read. Its sha256 is not checked: check what was read.

    Raises:
        NoParts: no index has the file, or its server does not serve parts, or fails while it is read.
    """
    values = pip_settings()
    refusals: list[str] = []
    session = session_of(values)
    for address in addresses(wanted, values, session, refusals):
        try:
            with RemoteZip(address, session=session, fetcher=ReadAhead, timeout=60) as remote:
                settings.narrate.note(f"fetching parts of {without_credentials(address)}")
                yield remote
                return
        except (RemoteZipError, HTTPError, requests.RequestException) as error:
            raise NoParts(without_credentials(f"{address}: {error}")) from error
    raise NoParts(f"no index offers parts of {wanted.filename}:" + "".join(f"\n  - {line}" for line in refusals))
