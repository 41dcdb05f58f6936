"""The settings of `hub serve`, checked before a socket is opened, and the check of a client's token."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flash_attn3_sm121.errors import UsageError

TOKEN_ENV = "FLASH_ATTN3_HUB_TOKEN"
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8765
MOST_CONNECTIONS = 4096
SPARE_DESCRIPTORS = 128  # for everything that is no connection
CHALLENGE = 'Basic realm="flash-attn3 hub", charset="UTF-8"'


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only. Names other than localhost count as reachable."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def raise_descriptors() -> int:
    """Raise the limit of open files to the hard limit. Returns how many connections may be open at once."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # A third is left for downloads, which need two more each.
    limit = MOST_CONNECTIONS if hard == resource.RLIM_INFINITY else (hard - SPARE_DESCRIPTORS) * 2 // 3
    return max(64, min(MOST_CONNECTIONS, limit))


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The settings of one server. Without a token everybody who reaches the address may read."""

    root: str
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    token: str | None = None
    insecure: bool = False
    connections: int | None = None  # that are open at once; None: as many as descriptors allow
    tls_cert: str | None = None
    tls_key: str | None = None
    access_log: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UsageError(f"--port: expected 0 to 65535 (0: any free port), found {self.port}")
        if self.connections is not None and self.connections < 1:
            raise UsageError(f"--connections: expected 1 or more, found {self.connections}")
        if self.token is not None and (
            len(self.token) < 8 or not self.token.isascii() or not self.token.isprintable() or " " in self.token
        ):
            raise UsageError(
                "the token: expected 8 or more printable ASCII characters without spaces",
                hint="make one with: python3 -c 'import secrets; print(secrets.token_urlsafe())'",
            )
        if self.tls_key is not None and self.tls_cert is None:
            raise UsageError("--tls-key is of no use without --tls-cert")
        if not is_loopback(self.host) and self.token is None and not self.insecure:
            raise UsageError(
                f"{self.host} can be reached from other machines, and no token is set",
                hint=f"set {TOKEN_ENV} (or --token-file), or say --insecure if everybody there may read the hub",
            )

    @property
    def scheme(self) -> str:
        return "https" if self.tls_cert else "http"

    def url(self, port: int, *, host: str | None = None) -> str:
        """The address for clients on this machine, or under another name of it."""
        name = host or {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"{self.scheme}://{f'[{name}]' if ':' in name else name}:{port}"


def read_token(file: Path) -> str:
    """The token in a file's first line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--token-file {file}: {error}") from error
    if not lines:
        raise UsageError(f"--token-file {file}: the file is empty")
    return lines[0].strip()


def _offered(header: str) -> Iterator[str]:
    scheme, _, value = header.strip().partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        yield value
    elif scheme.lower() == "basic":
        try:
            text = base64.b64decode(value, validate=True).decode("utf-8")
        except (binascii.Error, ValueError):
            return
        user, colon, password = text.partition(":")
        # https://TOKEN@host and https://anybody:TOKEN@host are both in use.
        yield password if colon and password else user


def allowed(token: str | None, header: str | None) -> bool:
    """Whether an Authorization header carries the token (as Bearer or as Basic); without a token everybody may read."""
    if token is None:
        return True
    if header is None:
        return False
    secret = token.encode()
    return any(hmac.compare_digest(secret, offer.encode("utf-8", "surrogateescape")) for offer in _offered(header))
