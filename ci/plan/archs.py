"""The CPU and the GPUs that a build is for. PyTorch's `TORCH_CUDA_ARCH_LIST` names the GPUs.

These functions are pure, and nothing asked for is ever dropped.

list    := item ((";" | " ") item)*
item    := (number | name) ["+PTX"]      number := 12.1, 9.0a, 12.0f      name := Ampere, Hopper, Blackwell, ...
native  := the GPUs of this machine (passed in), as PyTorch does for an unset list
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from flash_attn3_sm121.arch import CAPABILITIES, Capability, Image
from flash_attn3_sm121.errors import ArchError, UsageError

DEFAULT = "12.1"
_ALIASES = {"arm64": "aarch64", "amd64": "x86_64", "linux_aarch64": "aarch64", "linux_x86_64": "x86_64"}

# PyTorch's names and what it expands them to. The longer names come first: "Ampere+Tegra" contains "Ampere".
NAMES: dict[str, str] = {
    "Kepler+Tesla": "3.7",
    "Kepler": "3.5+PTX",
    "Maxwell+Tegra": "5.3",
    "Maxwell": "5.0;5.2+PTX",
    "Pascal": "6.0;6.1+PTX",
    "Volta+Tegra": "7.2",
    "Volta": "7.0+PTX",
    "Turing": "7.5+PTX",
    "Ampere+Tegra": "8.7",
    "Ampere": "8.0;8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell+Tegra": "11.0",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
}

# Family-specific code (sm_120f) came with CUDA 12.9, whatever the device's own first release was.
FAMILY_VARIANT_MIN_CUDA = (12, 9)

_ITEM = re.compile(r"(?P<major>\d+)\.(?P<minor>\d)(?P<variant>[a-z]?)(?P<ptx>\+PTX)?")


@dataclass(frozen=True, kw_only=True)
class Target:
    """One capability that is asked for: which machine code to make for it, and whether PTX goes along."""

    capability: Capability
    image: Image
    ptx: bool = False

    @property
    def name(self) -> str:
        return f"{self.capability.name}{self.image.variant}{'+PTX' if self.ptx else ''}"

    @property
    def ptx_image(self) -> Image | None:
        return Image(kind="compute", number=self.image.number, variant=self.image.variant) if self.ptx else None

    @property
    def code(self) -> tuple[Image, ...]:
        """What is compiled for it."""
        return (self.image,) if self.ptx_image is None else (self.image, self.ptx_image)


def gencode(code: Iterable[Image]) -> tuple[str, ...]:
    """nvcc's flags for this code."""
    pairs = (("-gencode", f"arch=compute_{image.number}{image.variant},code={image}") for image in code)
    return tuple(flag for pair in pairs for flag in pair)


def allowed() -> str:
    """What may be written, for messages."""
    numbers = [f"{row.name}[{''.join(v for v in row.variants if v)}]" for row in CAPABILITIES.values()]
    usable = [name for name, text in NAMES.items() if all(_known(item) for item in text.split(";"))]
    return f"{' '.join(number.replace('[]', '') for number in numbers)}, each with or without +PTX; names: " + " ".join(
        usable
    )


def _known(item: str) -> bool:
    return item.removesuffix("+PTX") in CAPABILITIES


def _expand(text: str, *, native: Sequence[str]) -> list[str]:
    """The items of a list, with PyTorch's names and `native` replaced by numbers."""
    items: list[str] = []
    for word in re.split(r"[;\s]+", text.strip()):
        if not word:
            continue
        if word == "native":
            if not native:
                raise ArchError(
                    "the architecture list says 'native', but no NVIDIA GPU answers on this machine",
                    hint=f"name it: TORCH_CUDA_ARCH_LIST={DEFAULT}",
                )
            items.extend(native)
        elif word in NAMES:
            items.extend(NAMES[word].split(";"))
        elif word.removesuffix("+PTX") in NAMES:
            expanded = NAMES[word.removesuffix("+PTX")]
            items.extend((expanded if expanded.endswith("+PTX") else f"{expanded}+PTX").split(";"))
        else:
            items.append(word)
    return items


def _target(item: str, *, origin: str, cuda: tuple[int, int]) -> Target:
    match = _ITEM.fullmatch(item)
    hint = f"allowed: {allowed()} (separated by ';' or a space)"
    if match is None:
        raise ArchError(f"unknown architecture {item!r} in {origin!r}", hint=hint)
    name = f"{match['major']}.{match['minor']}"
    row = CAPABILITIES.get(name)
    if row is None:
        raise ArchError(f"no kernel family serves compute capability {name} (asked for in {origin!r})", hint=hint)
    default = Image.parse(row.target)
    variant = match["variant"] or default.variant
    if variant not in row.variants:
        forms = ", ".join(f"{name}{v}" for v in row.variants)
        raise ArchError(f"{name} has no variant {variant!r} (asked for in {origin!r}); allowed: {forms}", hint=hint)
    needed = max(row.min_cuda, FAMILY_VARIANT_MIN_CUDA) if variant == "f" else row.min_cuda
    if cuda < needed:
        raise ArchError(
            f"{name}{variant} needs CUDA {needed[0]}.{needed[1]} or newer, found {cuda[0]}.{cuda[1]}",
            hint="use the pinned toolchain (no --cuda-home), or leave this architecture out",
        )
    image = Image(kind="sm", number=row.number, variant=variant)
    return Target(capability=row, image=image, ptx=match["ptx"] is not None)


def parse(text: str | None, *, cuda: tuple[int, int], native: Sequence[str] = ()) -> tuple[Target, ...]:
    """Targets in ascending order, each once. An empty list means this machine's GPUs, or 12.1 where it has none.

    `native` holds the capabilities of the machine's GPUs; asking for one that no family serves is an error
    as well when it comes from there, because the wheel would not run on the machine that it was built for.
    """
    origin = (text or "").strip() or " ".join(native) or DEFAULT
    merged: dict[Image, Target] = {}
    for item in _expand(origin, native=native):
        target = _target(item, origin=origin, cuda=cuda)
        known = merged.get(target.image)
        merged[target.image] = target if known is None or target.ptx else known
    return tuple(sorted(merged.values(), key=lambda target: (target.image.number, target.image.variant)))


class Platform(str, Enum):
    """The CPU a library is for; Linux everywhere."""

    AARCH64 = "aarch64"
    X86_64 = "x86_64"

    def __str__(self) -> str:
        return self.value

    @classmethod
    def parse(cls, text: str) -> Platform:
        name = _ALIASES.get(text.lower(), text.lower())
        known = {member.value: member for member in cls}
        if name not in known:
            raise UsageError(f"unknown platform {text!r}", hint=f"allowed: {', '.join(known)}")
        return known[name]

    @property
    def tag(self) -> str:
        """The generic platform tag of wheels and build facts."""
        return f"linux_{self.value}"

    @property
    def elf_machine(self) -> str:
        """e_machine of this platform's ELF files, by its name in the ELF specification."""
        return {Platform.AARCH64: "EM_AARCH64", Platform.X86_64: "EM_X86_64"}[self]

    @property
    def loader(self) -> str:
        """The dynamic loader's soname, which a library may name among its needs."""
        return {Platform.AARCH64: "ld-linux-aarch64.so.1", Platform.X86_64: "ld-linux-x86-64.so.2"}[self]
