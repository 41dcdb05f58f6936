"""A sound reading of a small library and wheel, for tests to spoil one thing at a time."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from typing import Any

from ci.verify.elf import SharedLibrary, Symbol
from ci.verify.kernels import Kernel
from ci.verify.policy import SYSTEM_LIBRARIES
from ci.verify.reading import LibraryReading, WheelReading
from flash_attn3_sm121.call.schemas import NATIVE, PUBLIC, one_spelling
from flash_attn3_sm121.native.buildfacts import BuildFacts

SCHEMAS = {name: one_spelling(f"{name}{text}") for name, text in PUBLIC.items()}
OURS = {name: one_spelling(f"{name}{text}") for name, text in NATIVE.items()}
SHA = "ab" * 32
VERSION = "3.0.0.post1+g3effce8.121.smoke"
NAME = f"flash_attn3_sm121-{VERSION}-py3-none-manylinux_2_34_aarch64.whl"
INFO = f"flash_attn3_sm121-{VERSION}.dist-info"
LIB = "flash_attn3_sm121/lib"


def forward_name(*, causal: bool, varlen: bool = False, head_dim: int = 64) -> str:
    """A mangled name with the shape of a real one."""
    flags = "".join(f"Lb{int(x)}E" for x in (causal, False, False, varlen, False, False, True, False))
    return (
        "_ZN7cutlass13device_kernelIN5flash19enable_sm80_to_sm89INS1_16FlashAttnFwdSm80INS1_25CollectiveMainloopFwdSm80"
        f"ILi4ELi1ELb0EN4cute5tupleIJNS5_1CILi128EEENS7_ILi112EEENS7_ILi{head_dim}EEEEEELi{head_dim}ENS_10bfloat16_tEfNS_"
        f"4arch4Sm80E{flags}EENS1_21CollectiveEpilogueFwdINS6_IJS8_SA_S9_EEENS6_IJNS7_ILi1EEESI_SI_EEESC_SE_Li128ELb0ELb1"
        "ELb0ELb0EEENS1_19SingleTileSchedulerILb1ELb0ELb1ELi128EEEEEEEEEvNT_6ParamsE"
    )


def kernel(name: str, **changes: Any) -> Kernel:
    sound = Kernel(
        name=name,
        image="sm_121",
        kind="forward",
        instructions=2931,
        tensor_core=448,
        async_copies=43,
        spill_stores=0,
        spill_loads=0,
        registers=255,
        stack=0,
        static_smem=1024,
    )
    return replace(sound, **changes)


KERNELS = (
    kernel(forward_name(causal=False)),
    kernel(forward_name(causal=True)),
    kernel(forward_name(causal=True, varlen=True)),
    kernel(
        "_ZN5flash32prepare_varlen_num_blocks_kernelILi32ELb0EEEviii",
        kind="prepare",
        instructions=263,
        tensor_core=0,
        async_copies=0,
        registers=18,
    ),
    kernel("_ZN3cub18CUB_300001_SM_12106detail11EmptyKernelIvEEvv", kind="library", instructions=3, tensor_core=0),
)

ELF = SharedLibrary(
    machine="EM_AARCH64",
    needed=("libtorch.so", "libtorch_cpu.so", *sorted(SYSTEM_LIBRARIES)[:2], "ld-linux-aarch64.so.1"),
    soname="flash_attn3_sm8x.so",
    run_path="",
    executable_stack=False,
    versions=(("libc.so.6", "GLIBC_2.34"), ("libstdc++.so.6", "GLIBCXX_3.4.29")),
    symbols=(
        Symbol(name="aoti_torch_get_dim", defined=False, weak=False, version=""),
        Symbol(name="aoti_torch_get_current_cuda_stream", defined=False, weak=True, version=""),
        Symbol(name="malloc", defined=False, weak=False, version="GLIBC_2.17"),
        Symbol(name="__gmon_start__", defined=False, weak=True, version=""),
    ),
)

FACTS = BuildFacts(
    family="sm8x",
    effective_arch=86,
    library="flash_attn3_sm8x.so",
    sha256=SHA,
    namespace="flash_attn3_sm8x",
    images=("sm_121",),
    ptx=(),
    dtypes=("bf16",),
    head_dims=(64,),
    backward_head_dims=(),
    features=("causal", "packgqa", "varlen"),
    smem_limit=101376,
    profile="smoke",
    platform="linux_aarch64",
    cuda="13.0",
    upstream="3effce8",
)

LIBRARY = LibraryReading(
    name="flash_attn3_sm8x.so",
    size=1000,
    sha256=SHA,
    elf=ELF,
    images=("sm_121",),
    ptx=(),
    kernels=KERNELS,
    schemas=OURS,
    paths=(),
)


def _files() -> dict[str, str]:
    names = [
        "flash_attn3_sm121/__init__.py",
        "flash_attn3_sm121/_dropin/flash_attn_interface.py",
        "flash_attn3_sm121.pth",
        *(f"{LIB}/{name}" for name in ("provenance.json", "verify.json", "sm8x.json", "flash_attn3_sm8x.so")),
        *(f"{INFO}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")),
        *(f"{INFO}/licenses/{name}" for name in ("LICENSE", "LICENSE.cutlass", "LICENSE.flash-attention")),
    ]
    return {name: hashlib.sha256(name.encode()).hexdigest() for name in names}


def record_of(files: dict[str, str]) -> dict[str, str]:
    rows = {
        name: "sha256=" + base64.urlsafe_b64encode(bytes.fromhex(sha)).rstrip(b"=").decode()
        for name, sha in files.items()
    }
    return {**rows, f"{INFO}/RECORD": ""}


WHEEL = WheelReading(
    name=NAME,
    size=5000,
    sha256=SHA,
    files=_files(),
    record=record_of(_files()),
    wheel_metadata="Wheel-Version: 1.0\nTag: py3-none-manylinux_2_34_aarch64\n",
    facts=(FACTS,),
    provenance={"identity": {"pin": "3effce8"}, "libraries": {"flash_attn3_sm8x.so": SHA}, "op_schemas": SCHEMAS},
    libraries=(LIBRARY,),
)
