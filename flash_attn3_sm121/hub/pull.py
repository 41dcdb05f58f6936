"""`flash-attn3 hub pull`: a verified copy of a hub that is served elsewhere, for clients that verify nothing.

A plain `kernels` client believes whatever its endpoint sends. So the endpoint is made one's own: this copies a hub
over any transport, checks the signature of its generation and the hash of every file, and only then shows it here.
"""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO
from urllib.parse import quote, urlsplit

from flash_attn3_sm121.errors import HubError, IntegrityError, UsageError
from flash_attn3_sm121.files import put_file
from flash_attn3_sm121.hub.generation import show
from flash_attn3_sm121.hub.index import FileEntry, Index, Manifest
from flash_attn3_sm121.hub.sign import TrustedKeys
from flash_attn3_sm121.hub.site import tree
from flash_attn3_sm121.hub.store import Generation, Hub, Transaction
from flash_attn3_sm121.hub.trust import remember

LARGEST_INDEX = 64 << 20
AT_ONCE = 8
SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What a pull did."""

    generation: int
    changed: bool
    key: str
    files: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A hub that is served at an address; `token` goes with every request."""

    url: str
    token: str | None = None

    @contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        request = urllib.request.Request(f"{self.url.rstrip('/')}/{quote(path)}")
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                yield answer
        except urllib.error.HTTPError as error:
            hint = "set FLASH_ATTN3_HUB_TOKEN to its token" if error.code == 401 else None
            raise HubError(f"{self.url}/{path}: {error.code} {error.reason}", hint=hint) from error
        except urllib.error.URLError as error:
            hint = f"does a hub serve there? curl {self.url.rstrip('/')}/healthz"
            raise HubError(f"{self.url} cannot be reached: {error.reason}", hint=hint) from error

    def read(self, path: str) -> bytes:
        with self.open(path) as answer:
            data = answer.read(LARGEST_INDEX + 1)
        if len(data) > LARGEST_INDEX:
            raise IntegrityError(f"{self.url}/{path} has more than {LARGEST_INDEX} bytes")
        return data


def pull(root: Path, remote: Remote, keys: TrustedKeys | None, *, durable: bool = True) -> Pulled:
    """Make the hub at `root` a copy of the remote one's current generation: same number, same bytes, same signature.

    Args:
        root: A new or empty folder, or an earlier copy of the same hub. It is made once the signature was found right.
        remote: Where to copy from.
        keys: One of them must have signed the generation.
        durable: Wait for the disk.

    Raises:
        UsageError: There are no keys, or the address is none.
        IntegrityError: A signature or a hash is wrong, or the generation is older than one that was seen here.
        HubError: The folder holds another hub, or something was published into the copy.
    """
    if keys is None:
        raise UsageError("pulling needs a key to trust", hint="say --keys ed25519:... or set FLASH_ATTN3_TRUSTED_KEYS")
    if urlsplit(remote.url).scheme not in ("http", "https"):
        raise UsageError(f"{remote.url}: expected an address that starts with http:// or https://")
    data = remote.read("hub/generation.json")
    try:
        signature: bytes | None = remote.read("hub/generation.sig")
    except HubError:
        signature = None
    key = keys.verify(data, signature, origin=remote.url)
    index = Index.from_bytes(data, origin=remote.url)
    remember(remote.url, index)
    hub = Hub.create(root, durable=durable)
    with hub.transaction(unsigned=True) as txn:
        base = txn.base
        if base.generation and base.hub != index.hub:
            raise HubError(f"{hub.layout.root} holds another hub", hint="name an empty folder with --hub")
        if base == index:
            return Pulled(generation=index.generation, changed=False, key=key, files=0, size=0)
        before = _shown_last(hub, remote)
        fetched = _fetch(txn, remote, index)
        put_file(hub.layout.pulled, f"{sha256(data).hexdigest()}\n{before}")
        show(txn, Generation(index=index, data=data, signature=signature))
    return Pulled(
        generation=index.generation,
        changed=True,
        key=key,
        files=len(fetched),
        size=sum(entry.size for entry in fetched),
    )


def _shown_last(hub: Hub, remote: Remote) -> str:
    """The hash of what the hub shows, as a line; empty where it shows nothing.

    Raises:
        HubError: That is not what a pull had shown: it would be hidden.
    """
    found = hub.current()
    if not found.index.generation:
        return ""
    mine, path = f"{sha256(found.data).hexdigest()}\n", hub.layout.pulled
    if path.is_file() and mine not in path.read_text(encoding="ascii").splitlines(keepends=True):
        raise HubError(
            f"generation {found.index.generation} of {hub.layout.root} was made here since the last pull, which "
            "would hide what it holds",
            hint=f"publish that to {remote.url} itself, and pull into an empty folder (--hub)",
        )
    return mine


def _fetch(txn: Transaction, remote: Remote, index: Index) -> list[FileEntry]:
    """Every object of the index that is not here yet; each is hashed as it comes in."""
    wanted = {entry: path for path, entry in tree.files(index)}
    done = _all(txn, remote, wanted)
    files: dict[FileEntry, str] = {}
    for name, sha, revision in index.revisions():
        held = txn.hub.read(FileEntry(sha256=revision.manifest, size=0))
        manifest = Manifest.from_bytes(held, origin=f"{name}@{sha}")
        files |= {entry: f"{name}/resolve/{sha}/{path}" for path, entry in manifest.files.items()}
        files |= {entry: path for path, entry in txn.hub.generated(revision).items()}
    return done + _all(txn, remote, files)


def _all(txn: Transaction, remote: Remote, wanted: dict[FileEntry, str]) -> list[FileEntry]:
    missing = {e: path for e, path in wanted.items() if not os.path.lexists(txn.hub.layout.object(e.sha256))}

    stopped = threading.Event()

    def one(item: tuple[FileEntry, str]) -> FileEntry:
        entry, path = item
        with remote.open(path) as answer:
            found = txn.add_stream(answer, stopped)
        if found != entry:
            raise IntegrityError(
                f"{remote.url}/{path}: expected sha256 {entry.sha256} ({entry.size} bytes), found {found.sha256}"
            )
        return entry

    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            return list(pool.map(one, missing.items()))
        except BaseException:
            stopped.set()  # the pool waits for its threads: nobody should wait for large files that are not wanted now
            raise
