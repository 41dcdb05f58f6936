"""The hub folder: every path in it is formatted and parsed here, and nowhere else.

    hub.json                      {"schema": 1, "kind": "flash-attn3-hub"}; written once
    CURRENT                       "17\\n": the number of the current generation; renaming this file is THE commit
    pulled                        in a copy: sha256 of the generation that `pull` showed last, and of the one before
    lock                          locked by writers (publish, remove, sign, gc); readers take no lock
    generations/00000017.json     one whole index (see index.Index); immutable once CURRENT names it
    generations/00000017.sig      when signed: an ed25519 signature of that file
    objects/ab/abcdef...          content by sha256 (64 hex digits, the first two name the folder), mode 0444
    tmp/                          unfinished writes; gc empties it under the lock
    trees/, www                   what web servers send (see site/tree.py); www shows the current generation

Wheels, their METADATA, each file of a kernel repository, and each revision's manifest are objects. An index names:

    site       generated files (the pip index, answers for huggingface_hub, pages): path -> sha256, size
    hub        a random name of the hub, so that a generation of one is not taken for a newer one of another
    wheels     file name -> sha256, size, metadata_sha256 (PEP 658), version, platform, families, verify, ...
    repos      <org>/<name> -> flavour ("fa3", "vllm" or "sgl"), refs {"main": sha, "v1": sha, "3.0.0.post1": sha},
               revisions {sha: {"manifest": sha256 of the manifest object, "version", "created", "added", "wheels",
               "listing": sha256 of an object of the manifest's form: the files that were generated for the revision}}

"added" is the number of the generation that brought a thing in: it orders them, whatever a clock said. As manifests
are named by hash, one signature of an index covers every name, every number and every byte below it.

A revision's name is 40 lower-case hex digits (the head of its manifest's sha256), like a git commit. A manifest is
JSON: {"schema": 1, "flavour": "fa3", "version": "...", "files": {"<path>": {"sha256": "...", "size": 1}}}

Inside a kernel repository (what a `kernels` client downloads):

    README.md                                   the repository's card
    build/torch-cuda/__init__.py                loader: picks the folder of this machine's platform
    build/torch-cuda/metadata.json              what every version of `kernels` parses
    build/torch-cuda/flash_attn3_variant.json   what people want to know: version, platforms, families, wheels
    build/torch-cuda/payload/linux_aarch64/flash_attn3_sm121/...  the package out of the aarch64 wheel (no CLI tools)
    build/torch-cuda/payload/linux_x86_64/flash_attn3_sm121/...   the same of the x86_64 wheel
    build/torch-cuda/payload/any/flash_attn3_sm121/...            Python only: fallbacks for any other machine
    build/torch-cpu/...                         the same with payload/any alone
    build/torch-universal/<name>/...            torch-cuda again, one folder deeper, for kernels 0.9 and 0.10

`torch-cuda` has no CPU architecture in its name, so both platforms lie side by side and the loader chooses at import.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from flash_attn3_sm121.errors import HubError

SCHEMA = 1
KIND = "flash-attn3-hub"
PACKAGE = "flash_attn3_sm121"
HUB_ENV = "FLASH_ATTN3_HUB"
# What unmodified clients ask for by name, and the flavour of each.
KNOWN_REPOS: dict[str, str] = {
    "varunneal/flash-attention-3": "fa3",
    "kernels-community/flash-attn3": "fa3",
    "kernels-community/vllm-flash-attn3": "vllm",
    "kernels-community/sgl-flash-attn3": "sgl",
}


def guessed_flavour(name: str) -> str:
    """The flavour that a repository's name (without its organisation) suggests."""
    return next((flavour for flavour in ("vllm", "sgl") if name.startswith(flavour)), "fa3")


_STEPS = frozenset({b"", b".", b".."})
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REVISION = re.compile(r"[0-9a-f]{40}")
_GENERATION = re.compile(r"(\d{8})\.json")
_REPO_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
_REF = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.+-]{0,126}[A-Za-z0-9_])?")
_WHEEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.+!-]{0,240})\.whl")


def default_root(environ: Mapping[str, str] | None = None) -> Path:
    """The hub folder where none is named: $FLASH_ATTN3_HUB, else under $XDG_DATA_HOME."""
    env = os.environ if environ is None else environ
    if env.get(HUB_ENV):
        return Path(env[HUB_ENV]).expanduser()
    data = env.get("XDG_DATA_HOME")
    base = Path(data) if data else Path(env.get("HOME") or Path.home()) / ".local" / "share"
    return base / "flash-attn3-sm121" / "hub"


def check_sha256(text: str) -> str:
    if _SHA256.fullmatch(text) is None:
        raise HubError(f"not a sha256: {text!r} (expected 64 lower-case hex digits)")
    return text


def check_revision(text: str) -> str:
    if _REVISION.fullmatch(text) is None:
        raise HubError(f"not a revision: {text!r} (expected 40 lower-case hex digits)")
    return text


def is_revision(text: str) -> bool:
    return _REVISION.fullmatch(text) is not None


def check_ref(text: str) -> str:
    if _REF.fullmatch(text) is None or ".." in text:
        raise HubError(f"not a usable ref name: {text!r}", hint="use letters, digits, '.', '_', '+' and '-'")
    return text


def check_wheel_name(text: str) -> str:
    if _WHEEL.fullmatch(text) is None:
        raise HubError(f"not a wheel's file name: {text!r}")
    return text


def check_file_path(text: str) -> str:
    """Check a path inside a kernel repository or a wheel: relative, normalised, printable, without `..`."""
    good = 0 < len(text) <= 1024 and text.isprintable() and "\\" not in text
    parts = text.encode().split(b"/") if good else []
    if not good or not _STEPS.isdisjoint(parts) or max(map(len, parts)) > 255:
        raise HubError(f"not a safe path inside a repository: {text!r}")
    return text


@dataclass(frozen=True, kw_only=True, order=True)
class RepoName:
    """`<org>/<name>` of a kernel repository; parse() and str() are inverse."""

    org: str
    name: str

    @classmethod
    def parse(cls, text: str) -> RepoName:
        parts = text.split("/")
        if len(parts) != 2 or any(_REPO_PART.fullmatch(part) is None or ".." in part for part in parts):
            raise HubError(f"not a repository name: {text!r}", hint="write it as ORG/NAME, e.g. my-lab/flash-attn3")
        return cls(org=parts[0], name=parts[1])

    def __str__(self) -> str:
        return f"{self.org}/{self.name}"

    def cache_folder(self, repo_type: str) -> str:
        """The folder of huggingface_hub's cache: `models--org--name` or `kernels--org--name`."""
        return f"{repo_type}s--{self.org}--{self.name}"


@dataclass(frozen=True, kw_only=True)
class HubLayout:
    """Where everything lies under one root. Names that come from outside are checked before they become paths."""

    root: Path

    @property
    def marker(self) -> Path:
        return self.root / "hub.json"

    @property
    def current(self) -> Path:
        return self.root / "CURRENT"

    @property
    def pulled(self) -> Path:
        return self.root / "pulled"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def generations_folder(self) -> Path:
        return self.root / "generations"

    @property
    def objects(self) -> Path:
        return self.root / "objects"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    def generation(self, number: int) -> Path:
        return self.generations_folder / f"{number:08d}.json"

    def signature(self, number: int) -> Path:
        return self.generation(number).with_suffix(".sig")

    def parse_generation(self, name: str) -> int | None:
        """The number in a generation's file name; None for any other file."""
        match = _GENERATION.fullmatch(name)
        return int(match[1]) if match else None

    def object(self, sha256: str) -> Path:
        check_sha256(sha256)
        return self.objects / sha256[:2] / sha256

    def parse_object(self, path: Path) -> str | None:
        """The sha256 that names a file under objects/; None for a file that does not belong there."""
        relative = path.relative_to(self.objects).parts
        named = len(relative) == 2 and _SHA256.fullmatch(relative[1]) and relative[1][:2] == relative[0]
        return relative[1] if named else None


def variant_path(variant: str, inner: str = "") -> str:
    """`build/<variant>/<inner>` inside a kernel repository."""
    return check_file_path(str(PurePosixPath("build", variant, inner)))


def payload_path(platform: str, inner: str) -> str:
    """Where a file of the package lies inside a variant's folder."""
    return check_file_path(f"payload/{platform}/{inner}")
