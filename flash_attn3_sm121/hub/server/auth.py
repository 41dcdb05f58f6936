"""Who may read. One token, as Bearer (Hugging Face clients, Prometheus) or as Basic (pip, browsers: in the address)."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterator

REALM = "flash-attn3 hub"
CHALLENGE = f'Basic realm="{REALM}", charset="UTF-8"'


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
    """Whether an Authorization header carries the token; without a token everybody may read."""
    if token is None:
        return True
    if header is None:
        return False
    secret = token.encode()
    return any(hmac.compare_digest(secret, offer.encode("utf-8", "surrogateescape")) for offer in _offered(header))
