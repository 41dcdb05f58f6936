"""HTTP as the harness needs it: certificates, proxies, credentials, ranges; with the standard library only."""

from __future__ import annotations

import base64
import http.client
import netrc
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit, urlunsplit

from ci.index.config import IndexConfig
from flash_attn3_sm121.errors import FetchError

AGENT = "flash-attn3-sm121-build"
NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, OSError)


class NotRangeable(FetchError):
    """The server does not serve parts of a file."""


def shown(url: str) -> str:
    """An address without its credentials, for messages."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def is_local(url: str) -> bool:
    return urlsplit(url).scheme in ("", "file")


def open_url(
    url: str, config: IndexConfig, *, accept: str | None = None, start: int = 0, end: int | None = None
) -> IO[bytes]:
    """Open an address, from byte `start` (to `end`, inclusive). Raises FetchError; the caller closes."""
    if config.offline and not is_local(url):
        raise FetchError(f"offline: {shown(url)} was not asked")
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    request = urllib.request.Request(shown(url), headers={"User-Agent": AGENT})
    credentials = _credentials(url)
    if credentials:
        # Not sent on when the server redirects: file hosts are other parties.
        request.add_unredirected_header("Authorization", credentials)
    if accept:
        request.add_header("Accept", accept)
    ranged = start > 0 or end is not None
    if ranged:
        request.add_header("Range", f"bytes={start}-{'' if end is None else end}")
    try:
        handler = urllib.request.HTTPSHandler(context=_tls(config, host))
        answer: IO[bytes] = urllib.request.build_opener(handler).open(request, timeout=config.timeout)
    except urllib.error.HTTPError as error:
        error.close()
        raise FetchError(f"{shown(url)}: HTTP {error.code} {error.reason}") from error
    except NETWORK_ERRORS as error:
        raise FetchError(f"{shown(url)}: {getattr(error, 'reason', None) or error}") from error
    if ranged and getattr(answer, "status", None) != 206:
        answer.close()
        raise NotRangeable(f"{shown(url)}: the server does not serve parts of a file")
    return answer


def _tls(config: IndexConfig, host: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if config.cert is None else str(config.cert))
        if config.client_cert is not None:
            context.load_cert_chain(str(config.client_cert))
    except (OSError, ssl.SSLError) as error:
        raise FetchError(f"cannot read the certificates {config.cert or config.client_cert}: {error}") from error
    if host in config.trusted_hosts or host.partition(":")[0] in config.trusted_hosts:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _credentials(url: str) -> str | None:
    """Basic credentials from the address itself, else from the user's netrc."""
    parts = urlsplit(url)
    if parts.username is not None:
        user, password = unquote(parts.username), unquote(parts.password or "")
    else:
        file = Path("~/.netrc").expanduser()
        if not parts.hostname or not file.is_file():
            return None
        try:
            entry = netrc.netrc(str(file)).authenticators(parts.hostname)
        except (netrc.NetrcParseError, OSError) as error:
            raise FetchError(f"cannot read {file}: {error}") from error
        if entry is None:
            return None
        user, password = entry[0], entry[2] or ""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
