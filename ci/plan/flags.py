"""Compiler flags, once each, with the reason where one is not plain. Pure.

Every path in a command is relative to the build folder, so that neither symbols nor messages depend on where it lies.
"""

from __future__ import annotations

from ci.plan.profiles import Selection
from ci.plan.units import Unit
from flash_attn3_sm121.arch import FAMILIES, Family

# torch's stable ABI as of this release: the library loads in it and in every later one.
TORCH_TARGET_VERSION = "0x0209000000000000"

INCLUDES = ("-Isrc/csrc", "-Isrc/hopper", "-Isrc/cutlass/include")
TORCH_INCLUDES = ("-isystem", "torch")

_NVCC = (
    "-O3",
    "-std=c++17",
    "--use_fast_math",
    "--expt-relaxed-constexpr",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    # The driver unpacks an image when its first kernel is launched. A static CUDA 13 runtime needs a driver that
    # knows this compression anyway, so the smaller file (by a factor of eight) costs no system.
    "--compress-mode=size",
    # Registers, spills and shared memory of each kernel, on stderr; the code is the same.
    "-Xptxas=-v",
    # `char` has no sign on aarch64, and nvcc loads a kernel's bool parameters accordingly. Said for every CPU, the
    # machine code is the same byte for byte wherever it is compiled.
    "-Xcompiler=-funsigned-char",
    "-Xcudafe=--unsigned_chars",
    "-Xcicc=--unsigned_chars",
)
_CXX = ("-O2", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-pipe")
_DEFINES = (
    "-DNDEBUG",
    "-DCUTLASS_DEBUG_TRACE_LEVEL=0",
    "-DCUTLASS_ENABLE_GDC_FOR_SM90",
)

# ptxas holds fewer values in registers than it does unless told (level 5 of 10). Kernels then need no spill that would
# have one otherwise, and their inner loops are as long or shorter. Others begin to spill: `_tight` files alone get it.
_FEWER_REGISTERS = "-Xptxas=--register-usage-level=3"

# CuTe's headers with every WGMMA shape, which Hopper's tiles need. Parsing them takes 40 CPU seconds a file, so nobody
# else gets them; the objects of the other families are the same with them and without.
HOPPER_SHAPES = "-DCUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED"

# Feature -> upstream's switch that leaves it out. `causal` and `chunk` have none; on Hopper `qv` goes with
# `diff_headdim`.
_SWITCHES = {
    "backward": "BACKWARD",
    "local": "LOCAL",
    "softcap": "SOFTCAP",
    "varlen": "VARLEN",
    "paged": "PAGEDKV",
    "split": "SPLIT",
    "append": "APPENDKV",
    "packgqa": "PACKGQA",
    "diff_headdim": "HDIMDIFF64 HDIMDIFF192",
    "deterministic": "DETERMINISTIC",  # ours: upstream always has it
    "kv8": "KV8",  # ours: upstream has nothing of it
    "qv": "QV",  # ours, and read below Hopper alone
}
_TYPE_SWITCHES = {"fp16": "FP16", "fp8": "FP8"}

# The switches that kernel files read; everything else is for the host file. Without the rest, profiles share objects.
_READ_BY = {
    "fwd": {"LOCAL", "VARLEN", "APPENDKV", "CLUSTER", "SM8x"},
    "bwd": {"LOCAL", "VARLEN", "SM8x"},
    "combine": {"SM8x"},
    "prepare": set[str](),
}


def feature_defines(chosen: Selection, kind: str) -> tuple[str, ...]:
    """Upstream's switches for what the selection leaves out, as far as a unit of that kind reads them.

    The host file gets them all: that is what makes it refuse by name what is not built.
    """
    names: list[str] = []
    for feature, switches in _SWITCHES.items():
        if not chosen.has(feature):
            names += switches.split()
    names += [switch for word, switch in _TYPE_SWITCHES.items() if word not in (*chosen.dtypes, *chosen.features)]
    every = sorted({dim for spec in FAMILIES.values() for dim in spec.head_dims})
    names += [f"HDIM{dim}" for dim in every if dim not in chosen.head_dims]
    if chosen.family is Family.SM90:
        names.append("SM8x")
    else:
        names.append("CLUSTER")  # thread block clusters are Hopper's
    read = _READ_BY.get(kind)
    return tuple(f"-DFLASHATTENTION_DISABLE_{name}" for name in names if read is None or name in read)


def family_defines(chosen: Selection, *, proxy: bool) -> tuple[str, ...]:
    """What makes the effective arch a compile-time constant, and names the library's op namespace."""
    spec = chosen.spec
    return (
        f"-DFA3_FAMILY_{str(spec.family).upper()}",
        f"-DFA3_ARCH={spec.effective_arch}",
        f"-DFA3_SMEM_LIMIT={spec.smem_limit}",
        f"-DFA3_NAMESPACE=flash_attn3_{spec.family}",
        *(("-DFA3_PROXY",) if proxy else ()),
        *((HOPPER_SHAPES,) if spec.family is Family.SM90 else ()),
    )


def _tight(unit: Unit, family: Family) -> bool:
    """Whether ptxas must be told to save registers: found by compiling the files of 12.x at each level."""
    if family is not Family.SM8X or unit.kind != "fwd" or unit.e4m3:
        return False
    return unit.head_dim == 256 or (unit.name.startswith("fwd_hd192_plain") and "softcap" not in unit.name)


def unit_flags(
    unit: Unit, family: Family, defines: tuple[str, ...], *, gencode: tuple[str, ...], images: tuple[str, ...]
) -> tuple[str, ...]:
    """A unit's flags: all that matters to its object, but for the tools, the seed and the file names.

    The host file is told which code the library holds, to refuse a device that could run none of it.
    """
    if unit.is_cuda:
        level = (_FEWER_REGISTERS,) if _tight(unit, family) else ()
        return (*nvcc_flags(defines, gencode), *level)
    return cxx_flags((*defines, f"-DFA3_IMAGES={','.join(images)}"))


def nvcc_flags(defines: tuple[str, ...], gencode: tuple[str, ...]) -> tuple[str, ...]:
    return (*_NVCC, *_DEFINES, *defines, *INCLUDES, *gencode)


def cxx_flags(defines: tuple[str, ...]) -> tuple[str, ...]:
    """The host file: torch's stable headers only, at our minimum version's ABI."""
    stable = ("-DTORCH_STABLE_ONLY", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}")
    return (*_CXX, *_DEFINES, *defines, *stable, *INCLUDES, *TORCH_INCLUDES)


def naming_flags(unit: Unit) -> tuple[str, ...]:
    """What goes into the symbol names that nvcc makes up: fixed numbers, and not the folder of the build.

    nvcc hashes the source's absolute path into the names of internal symbols. It tells cudafe++ and cicc the path with
    an option of theirs, of which the last one counts; so they are told the relative one again.
    """
    return (f"-frandom-seed={unit.name}", f"-Xcudafe=--orig_src_path_name,units/{unit.file}")


def keep_flags(unit: Unit) -> tuple[str, ...]:
    """Intermediate files under fixed names: nvcc's own temporary names get into symbols otherwise."""
    return ("--keep", "--keep-dir", f"keep/{unit.name}")
