"""`metadata.json` of a variant, in the form that every version of the `kernels` library takes.

Required in full from kernels 0.14 on; `backend.archs` is left out on purpose: the package falls back on any device,
and a list there would make kernels 0.16 and newer refuse the devices that the fallback is for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from flash_attn3_sm121.errors import HubError
from flash_attn3_sm121.hub.index import dump_json

INTERFACE_VERSION = 1  # what `get_kernel(..., version=1)` asks for
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_ID = re.compile(r"_[a-z0-9_]+")


@dataclass(frozen=True, kw_only=True)
class KernelMetadata:
    """One variant's metadata. `id` becomes a name in `sys.modules`: unique, and without dots."""

    name: str
    id: str
    backend: str  # cuda or cpu; "universal" is refused by kernels

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None:
            raise HubError(f"kernel metadata: name: expected lower case, digits and dashes, found {self.name!r}")
        if _ID.fullmatch(self.id) is None:
            raise HubError(f"kernel metadata: id: expected an underscore and [a-z0-9_], found {self.id!r}")
        if self.backend not in ("cuda", "cpu"):
            raise HubError(f"kernel metadata: backend: expected cuda or cpu, found {self.backend!r}")

    @classmethod
    def of(cls, name: str, backend: str, digest: str) -> KernelMetadata:
        return cls(name=name, id=f"_{name.replace('-', '_')}_{backend}_{digest[:12]}", backend=backend)

    def to_bytes(self) -> bytes:
        return dump_json(
            {
                "name": self.name,
                "id": self.id,
                "version": INTERFACE_VERSION,
                "license": "BSD-3-Clause",
                "python-depends": [],
                "backend": {"type": self.backend},
            }
        )
