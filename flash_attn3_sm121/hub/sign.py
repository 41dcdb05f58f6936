"""Signatures of a hub's generations: ed25519, with keys of one's own.

One signature covers a whole generation: its index, and by hash everything that the index names. The environment
variable `FLASH_ATTN3_TRUSTED_KEYS` names the public keys that are believed (the keys themselves or files holding them,
separated by commas or colons). Where it is set, our own commands and the override refuse a generation that none of
them signed. Needs the `cryptography` package (extra `[hub]`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flash_attn3_sm121.errors import HubError, IntegrityError, MissingPackageError, pip_command
from flash_attn3_sm121.hub.index import dump_json, load_json
from flash_attn3_sm121.hub.layout import SCHEMA

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

TRUSTED_ENV = "FLASH_ATTN3_TRUSTED_KEYS"
SIGNING_ENV = "FLASH_ATTN3_SIGNING_KEY"
# Signed before the content, so that a signature for one purpose is worth nothing for another.
DOMAIN = b"flash_attn3_sm121 hub generation 2\n"
_PUBLIC = re.compile(r"ed25519:(?P<key>[A-Za-z0-9+/]{43}=)")


def key_id(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class SigningKey:
    """A private key: PKCS#8 PEM in a file that only its owner can read."""

    public: str  # ed25519:<base64>
    key_id: str
    _key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls, path: Path) -> SigningKey:
        """Make a key in `path` and its public half in `path`.pub; an existing file is never overwritten."""
        from cryptography.hazmat.primitives import serialization as ser
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption())
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise HubError(f"{path} exists already", hint="name another file; a key is never overwritten") from error
        except OSError as error:
            raise HubError(f"cannot write {path}: {error.strerror}") from error
        with os.fdopen(handle, "wb") as stream:
            stream.write(pem)
        made = cls._of(key)
        Path(f"{path}.pub").write_text(made.public + "\n", encoding="ascii")
        return made

    @classmethod
    def _of(cls, key: Ed25519PrivateKey) -> SigningKey:
        raw = key.public_key().public_bytes_raw()
        return cls(public=f"ed25519:{base64.b64encode(raw).decode()}", key_id=key_id(raw), _key=key)

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except OSError as error:
            raise HubError(f"cannot read {path}: {error.strerror}", hint="flash-attn3 hub keygen FILE") from error
        except (ValueError, TypeError) as error:
            raise HubError(f"{path} is not an unencrypted PEM private key: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise HubError(f"{path}: expected an ed25519 key, found {type(key).__name__}")
        return cls._of(key)

    def sign(self, statement: bytes) -> bytes:
        """The content of a signature file."""
        signature = base64.b64encode(self._key.sign(DOMAIN + statement)).decode()
        return dump_json({"schema": SCHEMA, "key": self.key_id, "signature": signature})


def signer_of(signature: bytes, *, origin: str) -> str:
    """The id of the key that a signature file names. The signature is not checked."""
    return str(load_json(signature, origin=origin).get("key"))


@dataclass(frozen=True, kw_only=True)
class TrustedKeys:
    """Public keys that are believed, by their id."""

    keys: Mapping[str, bytes]

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> TrustedKeys | None:
        """What FLASH_ATTN3_TRUSTED_KEYS says; None where it is not set (then nothing needs a signature)."""
        text = (os.environ if environ is None else environ).get(TRUSTED_ENV, "")
        return cls.parse(text) if text.strip() else None

    @classmethod
    def parse(cls, text: str) -> TrustedKeys:
        keys: dict[str, bytes] = {}
        # A key holds a colon of its own ("ed25519:"), so keys are taken out before the rest is split into paths.
        for match in _PUBLIC.finditer(text):
            raw = base64.b64decode(match["key"])
            keys[key_id(raw)] = raw
        for word in re.split(r"[,:\s]+", _PUBLIC.sub(" ", text)):
            if not word:
                continue
            if word == "ed25519":
                raise HubError(
                    "trusted keys: a public key that begins with ed25519: is cut short or damaged",
                    hint="copy the whole line that `flash-attn3 hub keygen` printed: ed25519: and 44 characters",
                )
            try:
                found = _PUBLIC.findall(Path(word).read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise HubError(f"trusted keys: {word!r} is neither a key nor a readable file: {error}") from error
            if not found:
                raise HubError(f"trusted keys: {word} holds no public key (a line ed25519:...)")
            keys |= {key_id(raw): raw for raw in (base64.b64decode(item) for item in found)}
        return cls(keys=keys)

    def verify(self, statement: bytes, signature: bytes | None, *, origin: str) -> str:
        """The id of the key that signed exactly these bytes; IntegrityError unless it is one of ours.

        Args:
            statement: What must have been signed.
            signature: The content of the signature file; None where there is none.
            origin: What the bytes are, for messages.
        """
        if signature is None:
            raise IntegrityError(
                f"{origin} is not signed, and --keys or {TRUSTED_ENV} demands it", hint="flash-attn3 hub sign"
            )
        said = load_json(signature, origin=f"the signature of {origin}")
        key = str(said.get("key"))
        if key not in self.keys:
            raise IntegrityError(f"{origin} is signed by the key {key}, which is not among {sorted(self.keys)}")
        try:
            from cryptography.exceptions import InvalidSignature
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        except ImportError as error:  # the override, too, comes here
            hint = f'{pip_command()} install "flash_attn3_sm121[hub]"'
            raise MissingPackageError("signatures need the Python package cryptography", hint=hint) from error
        try:
            text = base64.b64decode(str(said.get("signature")), validate=True)
            Ed25519PublicKey.from_public_bytes(self.keys[key]).verify(text, DOMAIN + statement)
        except (InvalidSignature, binascii.Error) as error:
            raise IntegrityError(f"{origin}: the signature of key {key} does not match the content") from error
        return key
