"""What a kernel is, from its mangled name: an attention kernel must use tensor cores, a helper need not. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["forward", "backward", "combine", "prepare", "preprocess", "postprocess", "library", "other"]

# Class names of the kernels, as they are in a mangled name (with their length, so that no longer name matches).
_KINDS: tuple[tuple[str, Kind], ...] = (
    ("22FlashAttnBwdPreprocess", "preprocess"),
    ("32FlashAttnBwdPostprocessConvertdQ", "postprocess"),
    ("19FlashAttnFwdCombine", "combine"),
    ("32prepare_varlen_num_blocks_kernel", "prepare"),
    # CUB instantiates this one to read the architecture that a file was compiled for; it is empty on purpose.
    ("11EmptyKernelIvEEvv", "library"),
)
_ATTENTION = re.compile(r"\d+FlashAttn(?P<direction>Fwd|Bwd)Sm(?:80|90)")


def kind(mangled: str) -> Kind:
    """What a kernel does. One that no rule knows is `other`, and `other` is judged as an attention kernel."""
    for marker, found in _KINDS:
        if marker in mangled:
            return found
    match = _ATTENTION.search(mangled)
    if match is None:
        return "other"
    return "forward" if match["direction"] == "Fwd" else "backward"


_FLAGS = re.compile(r"(?:4Sm80E|4Sm90E|S\d*_4Sm\d0E)((?:Lb[01]E)+)")
_DTYPES = {"bfloat16_t": "bf16", "half_t": "fp16"}
# The boolean template arguments of the mma.sync main loops, in order.
_FORWARD_FLAGS = ("causal", "local", "softcap", "varlen", "paged", "append", "packgqa", "split")
_BACKWARD_FLAGS = ("causal", "local", "softcap", "varlen", "deterministic")


_TILE = re.compile(r"(Fwd|Bwd)Sm80I.*?5tupleIJ((?:NS\w*?_1CILi\d+EEE|NS\w*?_ILi\d+EEE|S\w*?_){3})E")
_TILE_ITEM = re.compile(r"N(?P<of>S\w*?)_(?:1C)?ILi(?P<size>\d+)EEE|(?P<again>S\w*?_)")


def tile(mangled: str) -> tuple[int, int, int] | None:
    """Rows, columns and head dim of an mma.sync kernel's tile, from its mangled name; None for any other.

    A name does not spell a type twice: it refers to the first place by number. The first size's number follows that of
    the class template, which a second, different size refers to.
    """
    found = _TILE.search(mangled)
    if found is None:
        return None
    items = list(_TILE_ITEM.finditer(found[2]))
    spelled = [item for item in items if item["size"]]
    numbers = {}
    if len(spelled) > 1:
        template = int(spelled[1]["of"][1:] or "-1", 36) + 1
        numbers = {template + 1 + index: int(item["size"]) for index, item in enumerate(spelled)}
    first = int(spelled[0]["size"])
    sizes = [int(i["size"]) if i["size"] else numbers.get(int(i["again"][1:-1] or "-1", 36) + 1, first) for i in items]
    return sizes[0], sizes[1], sizes[2]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What an mma.sync attention kernel is for, read from its mangled name."""

    dtype: str
    head_dim: int
    flags: frozenset[str]

    def __str__(self) -> str:
        return " ".join((f"hd{self.head_dim}", self.dtype, *sorted(self.flags)))


def variant(mangled: str) -> Variant | None:
    """The variant of an mma.sync forward or backward kernel; None for any other, or for a name of another form."""
    found = kind(mangled)
    marker = {"forward": "CollectiveMainloopFwdSm80", "backward": "CollectiveMainloopBwdSm80"}.get(found)
    if marker is None or marker not in mangled:
        return None
    rest = mangled.split(marker, 1)[1]
    element = re.search(r"\d+(bfloat16_t|half_t)E", rest)
    flags = _FLAGS.search(rest)
    shape = tile(mangled)
    if element is None or flags is None or shape is None:
        return None
    names = _FORWARD_FLAGS if found == "forward" else _BACKWARD_FLAGS
    values = re.findall(r"Lb([01])E", flags[1])
    chosen = {name for name, value in zip(names, values, strict=False) if value == "1"}
    if "CollectiveEpilogueBwdGQA" in rest:
        chosen.add("gqa")
    return Variant(dtype=_DTYPES[element[1]], head_dim=shape[2], flags=frozenset(chosen))


def needs_tensor_cores(found: Kind) -> bool:
    return found in ("forward", "backward", "other")


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel in one image, counted from its machine code."""

    name: str  # mangled
    image: str
    kind: Kind
    instructions: int
    tensor_core: int  # HMMA or HGMMA
    async_copies: int  # LDGSTS (cp.async) or UTMALDG (TMA)
    spill_stores: int  # STL
    spill_loads: int  # LDL
    registers: int
    stack: int
    static_smem: int


@dataclass(frozen=True, kw_only=True)
class Code:
    """Instruction counts of one function in one image."""

    instructions: int = 0
    tensor_core: int = 0
    async_copies: int = 0
    spill_stores: int = 0
    spill_loads: int = 0


_ARCH = re.compile(r"^\s*arch = (sm_\w+)")
_FUNCTION = re.compile(r"^\s*Function : (\S+)")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(?P<op>[A-Z][A-Z0-9_]*)")
_TENSOR = {"HMMA", "HGMMA", "QMMA", "QGMMA", "OMMA", "UTCHMMA"}
_COPIES = {"LDGSTS", "UTMALDG"}


def parse_sass(text: str) -> dict[tuple[str, str], Code]:
    """(image, mangled name) -> counts, from `cuobjdump -sass`. NOP padding does not count as an instruction."""
    found: dict[tuple[str, str], Code] = {}
    image, name = "", ""
    counts = [0, 0, 0, 0, 0]
    for line in text.splitlines():
        if match := _INSTRUCTION.match(line):
            op = match["op"]
            counts[0] += op != "NOP"
            counts[1] += op in _TENSOR
            counts[2] += op in _COPIES
            counts[3] += op == "STL"
            counts[4] += op == "LDL"
        elif match := _FUNCTION.match(line):
            _store(found, image, name, counts)
            name, counts = match[1], [0, 0, 0, 0, 0]
        elif match := _ARCH.match(line):
            _store(found, image, name, counts)
            image, name, counts = match[1], "", [0, 0, 0, 0, 0]
    _store(found, image, name, counts)
    return found


def _store(found: dict[tuple[str, str], Code], image: str, name: str, counts: list[int]) -> None:
    if name:
        found[image, name] = Code(
            instructions=counts[0],
            tensor_core=counts[1],
            async_copies=counts[2],
            spill_stores=counts[3],
            spill_loads=counts[4],
        )


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Resources of one function in one image."""

    registers: int
    stack: int
    shared: int


_USAGE_NAME = re.compile(r"^\s*Function (\S+):\s*$")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)")


def parse_usage(text: str) -> dict[tuple[str, str], Usage]:
    """(image, mangled name) -> resources, from `cuobjdump -res-usage`."""
    found: dict[tuple[str, str], Usage] = {}
    image, name = "", ""
    for line in text.splitlines():
        if match := _ARCH.match(line):
            image = match[1]
        elif match := _USAGE_NAME.match(line):
            name = match[1]
        elif (match := _USAGE.search(line)) and name:
            found[image, name] = Usage(registers=int(match[1]), stack=int(match[2]), shared=int(match[3]))
            name = ""
    return found


_LISTED = re.compile(r"\.(?P<image>sm_\w+)\.(?:cubin|elf\.bin)\b|\.(?P<ptx>(?:sm|compute)_\w+)\.ptx\b")


def parse_listing(text: str) -> tuple[str, ...]:
    """Images out of `cuobjdump -lelf` or `-lptx`, in order, repeated for each unit that holds one."""
    return tuple(match["image"] or match["ptx"] for match in _LISTED.finditer(text))
