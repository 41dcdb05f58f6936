"""What a kernel repository holds, composed from payloads: pure, every file is either an object or given bytes.

A payload is one wheel's package for one platform. `torch-cuda` says nothing about the CPU, so it carries every
platform's payload and the loader chooses; `torch-cpu` carries the Python-only payload.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from flash_attn3_sm121.errors import HubError
from flash_attn3_sm121.hub.index import FileEntry, dump_json
from flash_attn3_sm121.hub.layout import KNOWN_REPOS, SCHEMA, RepoName, guessed_flavour, payload_path, variant_path

ANY = "any"
INTERFACE_VERSION = 1  # what `get_kernel(..., version=1)` asks for
INFO_FILE = "flash_attn3_variant.json"
LOADER_SOURCE = "variant_loader.py"  # beside this file; becomes a variant's __init__.py


class Flavour(str, Enum):
    """Which functions a repository's module has: upstream's, or those of vLLM's or SGLang's fork."""

    FA3 = "fa3"
    VLLM = "vllm"
    SGL = "sgl"

    def __str__(self) -> str:
        return self.value

    @property
    def kernel_name(self) -> str:
        return "flash-attn3" if self is Flavour.FA3 else f"{self}-flash-attn3"


class Variant(str, Enum):
    """A build folder. The value is its name, as the `kernels` library looks for it."""

    TORCH_CUDA = "torch-cuda"
    TORCH_CPU = "torch-cpu"
    TORCH_UNIVERSAL = "torch-universal"

    def __str__(self) -> str:
        return self.value

    @classmethod
    def parse(cls, text: str) -> Variant:
        try:
            return cls(text)
        except ValueError:
            raise HubError(f"no such variant: {text!r} (there are: {', '.join(cls)})") from None

    @property
    def backend(self) -> str:
        return "cpu" if self is Variant.TORCH_CPU else "cuda"

    def folder(self, repo: RepoName) -> str:
        """Where the loader and its payload lie; kernels 0.9 and 0.10 want one more folder, named after the repo."""
        inner = repo.name.replace("-", "_") if self is Variant.TORCH_UNIVERSAL else ""
        return variant_path(str(self), inner)


ALIASES: dict[str, Flavour] = {name: Flavour(flavour) for name, flavour in KNOWN_REPOS.items()}

_FLAVOURED = re.compile(r"(?P<repo>[^=]+)=(?P<flavour>[a-z0-9]+)")


def parse_repo(text: str) -> tuple[RepoName, Flavour]:
    """`ORG/NAME` or `ORG/NAME=FLAVOUR`; a known alias has its flavour, another the one that its name begins with."""
    match = _FLAVOURED.fullmatch(text)
    repo = RepoName.parse(match["repo"] if match else text)
    known = ALIASES.get(str(repo), Flavour(guessed_flavour(repo.name)))
    if match is None:
        return repo, known
    try:
        flavour = Flavour(match["flavour"])
    except ValueError:
        raise HubError(f"no such flavour: {match['flavour']!r} (there are: {', '.join(Flavour)})") from None
    return repo, flavour


@dataclass(frozen=True, kw_only=True)
class Payload:
    """One platform's package as objects; paths start with the package's or the licences' folder."""

    platform: str
    wheel: str
    families: tuple[str, ...]
    images: tuple[str, ...]
    profile: str
    cuda: str
    files: Mapping[str, FileEntry]

    def info(self) -> dict[str, Any]:
        return {
            "wheel": self.wheel,
            "families": list(self.families),
            "images": list(self.images),
            "profile": self.profile,
            "cuda": self.cuda,
        }


def digest_of(files: Mapping[str, FileEntry]) -> str:
    """A hash of names and contents, in a fixed order."""
    text = "".join(f"{entry.sha256}  {path}\n" for path, entry in sorted(files.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def metadata(name: str, backend: str, digest: str) -> bytes:
    """`metadata.json` of a variant, in the form that every version of the `kernels` library takes.

    Required in full from kernels 0.14 on. `id` becomes a name in `sys.modules`: unique, and without dots.
    `backend.archs` is left out on purpose: the package falls back on any device, and a list there would make kernels
    0.16 and newer refuse the devices that the fallback is for.
    """
    unique = f"_{name.replace('-', '_')}_{backend}_{digest[:12]}"
    about = {"name": name, "id": unique, "version": INTERFACE_VERSION, "license": "BSD-3-Clause"}
    return dump_json({**about, "python-depends": [], "backend": {"type": backend}})


def loader_bytes() -> bytes:
    return (Path(__file__).parent / LOADER_SOURCE).read_bytes()


def card(repo: RepoName, flavour: Flavour, version: str, payloads: Mapping[str, Payload]) -> bytes:
    """The repository's README.md."""
    rows = "\n".join(
        f"| {platform} | {', '.join(item.families) or 'Python fallbacks only'} | {', '.join(item.images) or '-'} |"
        for platform, item in sorted(payloads.items())
    )
    text = f"""---
library_name: kernels
license: bsd-3-clause
tags:
- kernels
- flash-attention
---
# {repo}

FlashAttention-3 {version} out of `flash_attn3_sm121` ({flavour} interface), with a fallback for every other device.

| platform | families | machine code |
|---|---|---|
{rows}

```python
from kernels import get_kernel
flash_attn_interface = get_kernel("{repo}", version=1).flash_attn_interface
```
"""
    return text.encode()


Add = Callable[[bytes], FileEntry]


def compose(
    repo: RepoName, flavour: Flavour, version: str, payloads: Mapping[str, Payload], add: Add
) -> dict[str, FileEntry]:
    """Every file of the repository. `payloads` must hold `any`; `add` stores generated bytes."""
    if ANY not in payloads:
        raise HubError(f"cannot compose {repo}: no Python-only payload among {sorted(payloads)}")
    files = {"README.md": add(card(repo, flavour, version, payloads))}
    for variant in Variant:
        chosen = {ANY: payloads[ANY]} if variant is Variant.TORCH_CPU else payloads
        unit = _unit(variant, flavour, version, chosen, add)
        folder = variant.folder(repo)
        files |= {f"{folder}/{inner}": entry for inner, entry in unit.items()}
    return files


def _unit(
    variant: Variant, flavour: Flavour, version: str, payloads: Mapping[str, Payload], add: Add
) -> dict[str, FileEntry]:
    """The files of one variant, by their path beside its loader."""
    unit = {
        payload_path(platform, inner): entry
        for platform, payload in payloads.items()
        for inner, entry in payload.files.items()
    }
    info = {
        "schema": SCHEMA,
        "flavour": str(flavour),
        "version": version,
        "platforms": {platform: payload.info() for platform, payload in payloads.items()},
    }
    unit["__init__.py"] = add(loader_bytes())
    unit[INFO_FILE] = add(dump_json(info))
    unit["metadata.json"] = add(metadata(flavour.kernel_name, variant.backend, digest_of(unit)))
    return unit
