"""What a kernel is, from its name: an attention kernel must use tensor cores, a helper need not.

Names are mangled; c++filt, which comes with g++, spells them out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ci.process import output_of
from ci.verify.loops import TENSOR, Instruction, inner_loop

Kind = Literal["forward", "backward", "combine", "prepare", "preprocess", "postprocess", "library", "other"]

# The templates that kernels are made from, as they are named in a signature.
_KINDS: tuple[tuple[str, Kind], ...] = (
    ("flash::FlashAttnBwdPreprocess<", "preprocess"),
    ("flash::FlashAttnBwdPostprocessConvertdQ<", "postprocess"),
    ("flash::FlashAttnFwdCombine<", "combine"),
    ("flash::prepare_varlen_num_blocks_kernel<", "prepare"),
    # CUB instantiates this one to read the architecture that a file was compiled for; it is empty on purpose.
    ("::EmptyKernel<void>()", "library"),
)
_ATTENTION = re.compile(r"flash::FlashAttn(?P<direction>Fwd|Bwd)Sm(?:80|90)<")

_SIGNATURES: dict[str, str] = {}  # mangled name -> signature, for all names that were asked for


def demangle(names: Iterable[str]) -> dict[str, str]:
    """Mangled name -> signature, with one call of c++filt for those that are not known yet."""
    asked = list(dict.fromkeys(names))
    unknown = [name for name in asked if name not in _SIGNATURES]
    if unknown:
        lines = output_of(["c++filt"], stdin="".join(f"{name}\n" for name in unknown)).splitlines()
        _SIGNATURES.update(zip(unknown, lines, strict=True))
    return {name: _SIGNATURES[name] for name in asked}


def _signature(mangled: str) -> str:
    return demangle([mangled])[mangled]


def kind(mangled: str) -> Kind:
    """What a kernel does. One that no rule knows is `other`, and `other` is judged as an attention kernel."""
    signature = _signature(mangled)
    for marker, known in _KINDS:
        if marker in signature:
            return known
    match = _ATTENTION.search(signature)
    if match is None:
        return "other"
    return "forward" if match["direction"] == "Fwd" else "backward"


# The first template arguments of the mma.sync main loops. Forward: warps, stages, Q in registers, tile, head dim of V;
# backward: two stages, tile. Then the types, and the boolean arguments.
_MAIN_LOOP = re.compile(
    r"flash::CollectiveMainloop(?P<direction>Fwd|Bwd)Sm80<"
    r"(?P<warps>\d+), (?P<stages>\d+), (?:(?P<q_in_regs>true|false), )?"
    r"cute::tuple<cute::C<(?P<m>\d+)>, cute::C<(?P<n>\d+)>, cute::C<(?P<k>\d+)> ?>, (?:(?P<v>\d+), )?"
    r"(?:(?P<fp8>fa3::Fp8)|(?:(?P<kv8>fa3::Kv8<)|(?P<qv>fa3::Qv<))?cutlass::(?P<dtype>\w+))(?: ?>)?, float, "
    r"cutlass::arch::Sm80(?P<flags>(?:, (?:true|false))+)"
)
# Where Q, K and V are e4m3, the output's.
_DTYPES: dict[str | None, str] = {"bfloat16_t": "bf16", "half_t": "fp16", None: "bf16"}
FORWARD_FLAGS = ("causal", "local", "softcap", "varlen", "paged", "append", "packgqa", "split")
BACKWARD_FLAGS = ("causal", "local", "softcap", "varlen", "deterministic")


@dataclass(frozen=True, kw_only=True)
class Tile:
    """The tile of an mma.sync kernel. `warps` and `q_in_regs` are a forward kernel's."""

    block_m: int
    block_n: int
    head_dim: int
    warps: int
    stages: int
    q_in_regs: bool
    head_dim_v: int = 0  # of V, where it has another
    kv8: bool = False  # K and V are e4m3, and their bytes lie behind the tiles that they are widened to
    fp8: bool = False  # Q, K and V are e4m3
    qv: bool = False  # V meets a second query; warps of the same rows give each other their parts of the scores

    @property
    def values(self) -> int:
        return self.head_dim_v or self.head_dim


def _other_v(loop: re.Match[str]) -> int:
    return int(loop["v"]) if loop["v"] and loop["v"] != loop["k"] else 0


def tile(mangled: str) -> Tile | None:
    """The tile of an mma.sync attention kernel; None for any other kernel."""
    loop = _MAIN_LOOP.search(_signature(mangled))
    if loop is None:
        return None
    return Tile(
        block_m=int(loop["m"]),
        block_n=int(loop["n"]),
        head_dim=int(loop["k"]),
        warps=int(loop["warps"]),
        stages=int(loop["stages"]),
        q_in_regs=loop["q_in_regs"] == "true",
        head_dim_v=_other_v(loop),
        kv8=loop["kv8"] is not None,
        fp8=loop["fp8"] is not None,
        qv=loop["qv"] is not None,
    )


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What an mma.sync attention kernel is for."""

    dtype: str
    head_dim: int
    flags: frozenset[str]
    head_dim_v: int = 0  # of V, where it has another

    def __str__(self) -> str:
        dims = f"hd{self.head_dim}" + f"/{self.head_dim_v}" * bool(self.head_dim_v)
        return " ".join((dims, self.dtype, *sorted(self.flags)))


def variant(mangled: str) -> Variant | None:
    """The variant of an mma.sync attention kernel; None for any other kernel."""
    signature = _signature(mangled)
    loop = _MAIN_LOOP.search(signature)
    if loop is None:
        return None
    names = FORWARD_FLAGS if loop["direction"] == "Fwd" else BACKWARD_FLAGS
    values = loop["flags"].strip(", ").split(", ")
    flags = {name for name, value in zip(names, values, strict=False) if value == "true"}
    if "flash::CollectiveEpilogueBwdGQA<" in signature:
        flags.add("gqa")
    flags |= {name for name in ("kv8", "fp8", "qv") if loop[name]}
    return Variant(
        dtype=_DTYPES[loop["dtype"]], head_dim=int(loop["k"]), flags=frozenset(flags), head_dim_v=_other_v(loop)
    )


_PRODUCTS = {"forward": (1, 1), "backward": (3, 2)}  # over the head dim of Q and K, and over V's
_MMA = 16 * 8 * 16  # multiplications of one mma.sync of 16-bit elements; of 8-bit ones it has twice as many


def loop_of(mangled: str, counted: Mapping[str, int]) -> dict[str, int]:
    """The inner loop of an mma.sync attention kernel, with the warps that share a tile.

    Empty for any other kernel, and where the loop's tensor-core instructions are not those of a tile: then the compiler
    has laid the loop out in another way than is known here.
    """
    shape, products = tile(mangled), _PRODUCTS.get(kind(mangled), (0, 0))
    if shape is None or not counted:
        return {}
    columns = products[0] * shape.head_dim + (products[1] + shape.qv) * shape.values
    whole = shape.block_m * shape.block_n * columns // (_MMA * (1 + shape.fp8))
    warps, rest = divmod(whole, counted["tensor"])
    if rest or (kind(mangled) == "forward" and warps != shape.warps):
        return {}
    return {**counted, "warps": warps}


_SMEM_ALIGNMENT = 128


def _up(size: int) -> int:
    return -(-size // _SMEM_ALIGNMENT) * _SMEM_ALIGNMENT


def forward_bytes(tile: Tile, *, split: bool = False, varlen: bool = False) -> int:
    """Bytes of dynamic shared memory.

    Q shares V's place when it is kept in registers. The output reuses the places of V and K, and where it is larger
    than both, the rest is put in front of them as padding. Two bases of the nested structures and the scheduler's
    variables take one alignment unit each.
    """
    size = 1 if tile.fp8 else 2
    q = tile.block_m * tile.head_dim * size
    k, v = (tile.block_n * dim * size * tile.stages for dim in (tile.head_dim, tile.values))
    # Partial results of a split over one length go to memory straight from registers.
    out = 0 if split and not varlen else tile.block_m * tile.values * 2
    padding = max(0, out - k - v)
    main = (max(q, v) + k if tile.q_in_regs else q + k + v) + tile.kv8 * (k + v) // 2
    if tile.qv:  # Q and Qv go to registers by way of other places; a part of the scores is fp32
        main = k + v + tile.warps * 16 * tile.block_n * 4
    tensors = _SMEM_ALIGNMENT + max(_up(padding), _SMEM_ALIGNMENT) + main
    return max(tensors, out) + _SMEM_ALIGNMENT


def dynamic_smem(mangled: str) -> int | None:
    """Bytes that the launch of a forward mma.sync kernel asks for, from its mangled name; None for any other kernel."""
    shape, found = tile(mangled), variant(mangled)
    if shape is None or found is None or kind(mangled) != "forward":
        return None
    return forward_bytes(shape, split="split" in found.flags, varlen="varlen" in found.flags)


def needs_tensor_cores(of: Kind) -> bool:
    return of in ("forward", "backward", "other")


@dataclass(frozen=True, kw_only=True)
class Code:
    """Instruction counts of one function in one image. `loop` is `loops.inner_loop`'s."""

    instructions: int = 0
    tensor_core: int = 0  # HMMA or HGMMA
    async_copies: int = 0  # LDGSTS (cp.async) or UTMALDG (TMA)
    spill_stores: int = 0  # STL
    spill_loads: int = 0  # LDL
    loop: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Resources of one function in one image."""

    registers: int
    stack: int
    static_smem: int


@dataclass(frozen=True, kw_only=True)
class Kernel(Code, Usage):
    """One kernel in one image. `loop` is of mma.sync attention kernels alone, with the warps that share a tile."""

    name: str  # mangled
    image: str
    kind: Kind


_ARCH = re.compile(r"^\s*arch = (sm_\w+)")
_FUNCTION = re.compile(r"^\s*Function : (\S+)")
_INSTRUCTION = re.compile(
    r"^\s*/\*(?P<at>[0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(?P<op>[A-Z][A-Z0-9_]*)(?P<modifiers>[.\w]*)"
)
_BRANCH = re.compile(r"\b0x([0-9a-f]+)\s*;")
_COPIES = {"LDGSTS", "UTMALDG"}


def parse_sass(text: str) -> dict[tuple[str, str], Code]:
    """(image, mangled name) -> counts, from `cuobjdump -sass`. NOP padding does not count as an instruction."""
    codes: dict[tuple[str, str], Code] = {}
    image, name = "", ""
    body: list[Instruction] = []
    for line in text.splitlines():
        if match := _INSTRUCTION.match(line):
            branch = _BRANCH.search(line) if match["op"] == "BRA" else None
            target = int(branch[1], 16) if branch else None
            body.append(Instruction(int(match["at"], 16), match["op"], match["modifiers"], target))
        elif match := _FUNCTION.match(line):
            _store(codes, image, name, body)
            name, body = match[1], []
        elif match := _ARCH.match(line):
            _store(codes, image, name, body)
            image, name, body = match[1], "", []
    _store(codes, image, name, body)
    return codes


def _store(codes: dict[tuple[str, str], Code], image: str, name: str, body: list[Instruction]) -> None:
    if name:
        ops = [item.op for item in body]
        codes[image, name] = Code(
            instructions=sum(op != "NOP" for op in ops),
            tensor_core=sum(op in TENSOR for op in ops),
            async_copies=sum(op in _COPIES for op in ops),
            spill_stores=ops.count("STL"),
            spill_loads=ops.count("LDL"),
            loop=inner_loop(body),
        )


_USAGE_NAME = re.compile(r"^\s*Function (\S+):\s*$")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)")


def parse_usage(text: str) -> dict[tuple[str, str], Usage]:
    """(image, mangled name) -> resources, from `cuobjdump -res-usage`."""
    usages: dict[tuple[str, str], Usage] = {}
    image, name = "", ""
    for line in text.splitlines():
        if match := _ARCH.match(line):
            image = match[1]
        elif match := _USAGE_NAME.match(line):
            name = match[1]
        elif (match := _USAGE.search(line)) and name:
            usages[image, name] = Usage(registers=int(match[1]), stack=int(match[2]), static_smem=int(match[3]))
            name = ""
    return usages


_LISTED = re.compile(r"\.(?P<image>sm_\w+)\.(?:cubin|elf\.bin)\b|\.(?P<ptx>(?:sm|compute)_\w+)\.ptx\b")


def parse_listing(text: str) -> tuple[str, ...]:
    """Images out of `cuobjdump -lelf` or `-lptx`, in order, repeated for each unit that holds one."""
    return tuple(match["image"] or match["ptx"] for match in _LISTED.finditer(text))
