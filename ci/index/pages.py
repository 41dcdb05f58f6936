"""Pages of the index that pip is configured for, read by pypi-simple; and one file of them, downloaded and checked.

Loading requests and pypi-simple takes half a second: only what really asks an index imports this module.
"""

from __future__ import annotations

import errno
import re
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import requests
from pypi_simple import (
    PYPI_SIMPLE_ENDPOINT,
    DistributionPackage,
    NoSuchProjectError,
    PyPISimple,
    UnsupportedContentTypeError,
    UnsupportedRepoVersionError,
)
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from ci.cache.folders import file_sha256
from ci.index import Wanted
from ci.index.pip import NETWORK_HINT, TRUE_WORDS, folders, local_path, pip_settings
from ci.settings import Settings
from flash_attn3_sm121.console import Narrator
from flash_attn3_sm121.errors import DiskError, FetchError

CHUNK = 1 << 18
RETRIES = Retry(total=3, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504))
NO_PAGE = (NoSuchProjectError, UnsupportedContentTypeError, UnsupportedRepoVersionError, ValueError)


class TrustedHost(HTTPAdapter):
    """A server whose certificate is not checked: pip's `trusted-host`."""

    def cert_verify(self, conn: Any, url: str, verify: bool | str, cert: Any) -> None:
        super().cert_verify(conn, url, False, cert)


def session_of(values: Mapping[str, str]) -> requests.Session:
    """A session with pip's certificates, else the system's; proxies and netrc are found by requests."""
    session = requests.Session()
    session.mount("http://", HTTPAdapter(max_retries=RETRIES))
    session.mount("https://", HTTPAdapter(max_retries=RETRIES))
    for host in values.get("trusted-host", "").split():
        for prefix in (f"https://{host}/", f"https://{host}:"):  # on any port, where none is named
            session.mount(prefix, TrustedHost(max_retries=RETRIES))
    session.headers["Accept-Encoding"] = "identity"  # a file as it lies on the server, not packed for the way
    session.verify = values.get("cert") or ssl.get_default_verify_paths().cafile or True
    session.cert = values.get("client-cert")
    return session


def offers(
    project: str, values: Mapping[str, str], session: requests.Session, refusals: list[str]
) -> Iterator[tuple[str, list[DistributionPackage]]]:
    """Each of pip's indexes that has a project, and its files there; what the others answered becomes refusals."""
    indexes = [values.get("index-url", PYPI_SIMPLE_ENDPOINT), *values.get("extra-index-url", "").split()]
    if values.get("no-index", "").lower() in TRUE_WORDS:
        indexes = []
    timeout = float(values.get("default-timeout") or values.get("timeout") or 60)
    for index in (index for index in indexes if local_path(index) is None):
        client = PyPISimple(index, session=session)
        try:
            yield index, client.get_project_page(project, timeout=timeout).packages
        except (requests.RequestException, *NO_PAGE) as error:
            refusals.append(without_credentials(str(error)))


def addresses(
    wanted: Wanted, values: Mapping[str, str], session: requests.Session, refusals: list[str]
) -> Iterator[str]:
    """Every address that pip's indexes give for a file without announcing another hash; the others become refusals."""
    for index, packages in offers(wanted.project, values, session, refusals):
        matching = [package for package in packages if package.filename == wanted.filename]
        if not matching:
            refusals.append(f"{without_credentials(index)}: offers no {wanted.filename}")
        for offer in matching:
            announced = (offer.digests or {}).get("sha256", wanted.sha256)
            if announced == wanted.sha256:
                yield with_credentials(offer.url, index)
            else:
                refusals.append(f"{without_credentials(offer.url)}: sha256 {announced}, pinned is {wanted.sha256}")


def wheels_of(project: str) -> list[Wanted]:
    """Every wheel of a project that the first of pip's indexes with such a project offers, with its hash.

    Raises:
        FetchError: no index has the project; the text says what each of them answered.
    """
    values, refusals = pip_settings(), list[str]()
    for _, packages in offers(project, values, session_of(values), refusals):
        return [
            Wanted(project=project, filename=package.filename, sha256=package.digests["sha256"])
            for package in packages
            if package.filename.endswith(".whl") and "sha256" in (package.digests or {})
        ]
    raise FetchError(f"no index has {project}: {'; '.join(refusals)}", hint=NETWORK_HINT)


def download_file(wanted: Wanted, into: Path, settings: Settings) -> Path:
    """The pinned file: where it lies in a folder of pip's, else downloaded to `into`.

    Args:
        wanted: the file and its hash.
        into: the folder for a download.
        settings: `offline` is only from folders: find-links, and indexes with a `file:` address.

    Raises:
        FetchError: no place gives the file, with what each of them said; or it cannot be written.
    """
    values = pip_settings()
    refusals: list[str] = []
    indexes = [local_path(index) for name in ("index-url", "extra-index-url") for index in values.get(name, "").split()]
    project = re.sub(r"[-_.]+", "-", wanted.project).lower()
    for folder in [*folders(values), *(path / project for path in indexes if path is not None)]:
        file = folder / wanted.filename
        if not file.is_file():
            refusals.append(f"{folder}: has no {wanted.filename}")
        elif (found := file_sha256(file)) == wanted.sha256:
            return file
        else:
            refusals.append(f"{file}: expected sha256 {wanted.sha256}, found {found}")
    if settings.offline:
        refusals.append("offline: no index was asked")
    else:
        session, target = session_of(values), into / wanted.filename
        for address in addresses(wanted, values, session, refusals):
            try:
                _download(address, target, session, settings.narrate)
            except requests.RequestException as error:
                refusals.append(without_credentials(f"{address}: {error}"))
                continue
            if (found := file_sha256(target)) == wanted.sha256:
                return target
            refusals.append(without_credentials(f"{address}: expected sha256 {wanted.sha256}, found {found}"))
            target.unlink()
    trace = "".join(f"\n  - {refusal}" for refusal in refusals or ["no package index is configured"])
    raise FetchError(f"could not get {wanted.filename} (sha256 {wanted.sha256}); tried:{trace}", hint=NETWORK_HINT)


def _download(address: str, target: Path, session: requests.Session, narrate: Narrator) -> None:
    """Download, again from the start where the connection was cut."""
    for _ in range(2):
        try:
            _receive(address, target, session, narrate)
            return
        except requests.exceptions.ChunkedEncodingError as error:
            narrate.note(without_credentials(f"{target.name}: {error}; trying again"))
    _receive(address, target, session, narrate)


def _receive(address: str, target: Path, session: requests.Session, narrate: Narrator) -> None:
    narrate.note(f"fetching {without_credentials(address)}")
    with session.get(address, stream=True, timeout=60) as answer:
        answer.raise_for_status()
        length = answer.headers.get("Content-Length")
        try:
            with target.open("wb") as sink, narrate.progress(target.name, int(length) if length else None) as progress:
                for chunk in answer.iter_content(CHUNK):
                    sink.write(chunk)
                    progress.advance(len(chunk))
        except requests.RequestException:
            raise
        except OSError as error:
            kind = DiskError if error.errno in (errno.ENOSPC, errno.EDQUOT) else FetchError
            raise kind(
                f"cannot write {target}: {error.strerror}", hint="FA3_CACHE=DIR puts the content cache on another disk"
            ) from error


def with_credentials(url: str, index: str) -> str:
    """The address of a file, with the credentials in the index's own address where both have the same host."""
    ours, theirs = urlsplit(index), urlsplit(url)
    user, at, host = ours.netloc.rpartition("@")
    if not at or (theirs.scheme, theirs.netloc) != (ours.scheme, host):
        return url
    return urlunsplit(theirs._replace(netloc=f"{user}@{host}"))


def without_credentials(text: str) -> str:
    """A text for people or logs, all credentials in addresses taken out."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)
