"""What `hub serve` was asked to do, checked before any socket is opened."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from flash_attn3_sm121.errors import UsageError

TOKEN_ENV = "FLASH_ATTN3_HUB_TOKEN"
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8765
MAX_WORKERS = 64


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only. Names other than localhost count as reachable."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """One server. `token` None means anybody who reaches the address may read."""

    root: Path
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    token: str | None = None
    insecure: bool = False
    workers: int = 1
    tls_cert: Path | None = None
    tls_key: Path | None = None
    access_log: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UsageError(f"--port: expected 0 to 65535 (0: any free port), found {self.port}")
        if not 1 <= self.workers <= MAX_WORKERS:
            raise UsageError(f"--workers: expected 1 to {MAX_WORKERS}, found {self.workers}")
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

    def url(self, port: int) -> str:
        """The address for people and clients; an unspecified address is shown as this machine's loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{port}"
