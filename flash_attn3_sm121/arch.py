"""The one table: GPU capability -> kernel family -> sources, machine-code targets, limits and features.

Everything else reads it: the build planner, the compiler flags, the run-time dispatch, the hub's metadata and
the README's support table. To add an architecture, add a row here (see CONTRIBUTING.md).

Two facts are kept apart on purpose. A *family* says which kernel template serves a device (and so how much shared
memory a tile may use); a *target* says which machine code is in a binary. This module is pure: no torch, no disk.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from flash_attn3_sm121.errors import ArchError, TableError


class Family(str, Enum):
    """A kernel template with its tile budget; each is compiled to a library of its own."""

    SM80 = "sm80"
    SM8X = "sm8x"
    SM90 = "sm90"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, kw_only=True)
class FamilySpec:
    """What a family's kernels are and can do. `effective_arch` is upstream's `Arch` template argument."""

    family: Family
    effective_arch: int
    smem_limit: int  # bytes of dynamic shared memory a block may ask for on the family's smallest device
    dtypes: tuple[str, ...]
    head_dims: tuple[int, ...]
    features: frozenset[str]
    about: str


@dataclass(frozen=True, kw_only=True)
class Capability:
    """A GPU generation: how it is called, which family serves it, which machine code it wants."""

    major: int
    minor: int
    family: Family
    target: str  # default machine code, e.g. sm_121
    variants: tuple[str, ...]  # suffixes that may be asked for: "", "a", "f"
    min_cuda: tuple[int, int]
    smem_limit: int  # bytes of dynamic shared memory a block may opt in to on this device
    devices: str
    hosts: tuple[str, ...] = ("linux_aarch64", "linux_x86_64")  # the CPUs that such a device is found beside

    @property
    def name(self) -> str:
        return f"{self.major}.{self.minor}"

    @property
    def number(self) -> int:
        return self.major * 10 + self.minor


COMMON_FEATURES = frozenset(
    {"backward", "causal", "local", "softcap", "varlen", "paged", "split", "append", "packgqa", "chunk"}
)
# Of the mma.sync families: pointers that Hopper's kernels do not read, and kernels of their own where Hopper has them.
# `qv` there is V of more than 256 columns, too. `kv8`, K and V in e4m3 beside a 16-bit Q, and `fp8`, Q too, take a
# device that converts and multiplies such numbers.
KV8_SINCE = (8, 9)
_ADDED_FEATURES = frozenset({"sinks", "dlse", "deterministic", "diff_headdim", "kv8", "fp8", "qv"})

FAMILIES: dict[Family, FamilySpec] = {
    Family.SM80: FamilySpec(
        family=Family.SM80,
        effective_arch=80,
        smem_limit=166912,
        dtypes=("bf16", "fp16"),
        head_dims=(64, 96, 128, 192, 256),
        features=COMMON_FEATURES | _ADDED_FEATURES,
        about="mma.sync and cp.async, large shared memory",
    ),
    Family.SM8X: FamilySpec(
        family=Family.SM8X,
        effective_arch=86,
        smem_limit=101376,
        dtypes=("bf16", "fp16"),
        head_dims=(64, 96, 128, 192, 256),
        features=COMMON_FEATURES | _ADDED_FEATURES,
        about="mma.sync and cp.async, 99 KB of shared memory",
    ),
    Family.SM90: FamilySpec(
        family=Family.SM90,
        effective_arch=90,
        smem_limit=232448,
        dtypes=("bf16", "fp16", "e4m3"),
        head_dims=(64, 96, 128, 192, 256),
        features=COMMON_FEATURES | {"qv", "fp8", "diff_headdim", "deterministic"},
        about="WGMMA and TMA, Hopper only",
    ),
}


def _row(
    name: str,
    family: Family,
    *,
    target: str,
    variants: tuple[str, ...] = ("",),
    min_cuda: tuple[int, int],
    smem_limit: int,
    devices: str,
    hosts: tuple[str, ...] = ("linux_aarch64", "linux_x86_64"),
) -> Capability:
    major, minor = name.split(".")
    return Capability(
        major=int(major),
        minor=int(minor),
        family=family,
        target=target,
        variants=variants,
        min_cuda=min_cuda,
        smem_limit=smem_limit,
        devices=devices,
        hosts=hosts,
    )


CAPABILITIES: dict[str, Capability] = {
    row.name: row
    for row in (
        _row("8.0", Family.SM80, target="sm_80", min_cuda=(12, 0), smem_limit=166912, devices="A100, A30"),
        _row("8.6", Family.SM8X, target="sm_86", min_cuda=(12, 0), smem_limit=101376, devices="RTX 3090, A10, A40"),
        _row("8.9", Family.SM8X, target="sm_89", min_cuda=(12, 0), smem_limit=101376, devices="RTX 4090, L4, L40S"),
        # FA3's Hopper kernels use wgmma and setmaxnreg: plain sm_90 cannot express them, so 9.0 means sm_90a.
        _row(
            "9.0",
            Family.SM90,
            target="sm_90a",
            variants=("a",),
            min_cuda=(12, 3),
            smem_limit=232448,
            devices="H100, H200, GH200",
        ),
        _row(
            "10.0",
            Family.SM80,
            target="sm_100",
            variants=("", "a", "f"),
            min_cuda=(12, 8),
            smem_limit=232448,
            devices="B200, GB200",
        ),
        _row(
            "10.3",
            Family.SM80,
            target="sm_103",
            variants=("", "a", "f"),
            min_cuda=(12, 9),
            smem_limit=232448,
            devices="B300, GB300",
        ),
        _row(
            "11.0",
            Family.SM80,
            target="sm_110",
            variants=("", "a", "f"),
            min_cuda=(13, 0),
            smem_limit=232448,
            devices="Jetson Thor",
            hosts=("linux_aarch64",),
        ),
        _row(
            "12.0",
            Family.SM8X,
            target="sm_120",
            variants=("", "a", "f"),
            min_cuda=(12, 8),
            smem_limit=101376,
            devices="RTX 5090, RTX PRO 6000",
        ),
        _row(
            "12.1",
            Family.SM8X,
            target="sm_121",
            variants=("", "a", "f"),
            min_cuda=(12, 9),
            smem_limit=101376,
            devices="GB10 (DGX Spark)",
            hosts=("linux_aarch64",),
        ),
    )
}

# Devices that may stand in for one of another family (a proxy build, for tests only): the kind that people have at hand
# or rent, whose plain machine code can express every mma.sync kernel.
PROXY_DEVICES = ("8.0", "8.6", "8.9", "9.0")

# What the tiles in csrc/ were tuned on: there, head dims 64 and 128 must not spill. Elsewhere a few spills cost speed.
TUNED_CAPABILITIES = ("12.0", "12.1")

_IMAGE = re.compile(r"(?P<kind>sm|compute)_(?P<number>\d{2,3})(?P<variant>[af]?)")


@dataclass(frozen=True, kw_only=True)
class Image:
    """Code in a fat binary: machine code (`sm_121`) or PTX (`compute_121`); parse() and str() are inverse."""

    kind: str
    number: int
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Image:
        match = _IMAGE.fullmatch(text)
        if match is None:
            raise ArchError(f"not a machine-code name: {text!r} (expected for example sm_121, sm_90a or compute_121)")
        return cls(kind=match["kind"], number=int(match["number"]), variant=match["variant"])

    def __str__(self) -> str:
        return f"{self.kind}_{self.number}{self.variant}"

    @property
    def converts_e4m3(self) -> bool:
        """Whether this code may hold kernels that read K and V in e4m3 beside a 16-bit Q."""
        return (self.major, self.minor) >= KV8_SINCE

    @property
    def major(self) -> int:
        return self.number // 10

    @property
    def minor(self) -> int:
        return self.number % 10

    def runs_on(self, major: int, minor: int) -> bool:
        """Whether a driver would run this code on a device of that capability (CUDA's binary compatibility rules)."""
        if self.variant == "a":
            return (self.major, self.minor) == (major, minor)
        if self.kind == "sm" or self.variant == "f":
            return self.major == major and self.minor <= minor
        return (self.major, self.minor) <= (major, minor)


def capability(major: int, minor: int) -> Capability | None:
    """The table's row for a device, or None where the table has none."""
    return CAPABILITIES.get(f"{major}.{minor}")


def validate() -> None:
    """Check the table against itself; raises TableError naming key, expected and found."""
    for family, spec in FAMILIES.items():
        if spec.family is not family:
            raise TableError(f"FAMILIES[{family}].family: expected {family}, found {spec.family}")
    for name, row in CAPABILITIES.items():
        image = Image.parse(row.target)
        if image.number != row.number:
            raise TableError(f"CAPABILITIES[{name}].target: expected a number of {row.number}, found {row.target}")
        if image.variant not in row.variants:
            raise TableError(f"CAPABILITIES[{name}].variants: expected {image.variant!r} among {row.variants}")
        limit = FAMILIES[row.family].smem_limit
        if row.smem_limit < limit:
            raise TableError(f"CAPABILITIES[{name}].smem_limit: expected at least {limit}, found {row.smem_limit}")
    for key, names in (("PROXY_DEVICES", PROXY_DEVICES), ("TUNED_CAPABILITIES", TUNED_CAPABILITIES)):
        for name in names:
            if name not in CAPABILITIES:
                raise TableError(f"{key}: expected rows of CAPABILITIES, found {name}")


validate()
