"""Reading libraries and tools' output: ELF against readelf's view of a real file, machine code, schemas, paths."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from ci.plan.archs import Platform
from ci.verify import elf, kernels, policy, schemas
from ci.verify.reading import build_paths, join
from flash_attn3_sm121.errors import VerifyError
from tests.fakes.doctored import SCHEMAS, forward_name

# A shared library that every Python of these tests has: an extension module of the standard library.
SAMPLE = next(Path(sysconfig.get_path("stdlib"), "lib-dynload").glob("_struct*.so"), None) or Path(
    next(Path(sysconfig.get_path("stdlib"), "lib-dynload").glob("*.so"))
)


@pytest.fixture(scope="module")
def sample() -> bytes:
    return SAMPLE.read_bytes()


def test_elf_as_readelf_sees_it(sample: bytes) -> None:
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("no readelf here")
    found = elf.parse(sample, name=SAMPLE.name)
    said = subprocess.run(
        [readelf, "-dW", "--dyn-syms", "-V", SAMPLE], capture_output=True, text=True, check=True
    ).stdout
    assert list(found.needed) == re.findall(r"\(NEEDED\)\s+Shared library: \[(.+?)\]", said)
    rows = re.findall(r"^\s*\d+: [0-9a-f]+\s+\d+ \w+\s+(\w+)\s+\w+\s+(\w+) (\S+?)(?:@.*)?$", said, re.MULTILINE)
    undefined = sorted(name for _, section, name in rows if section == "UND")
    assert sorted(symbol.name for symbol in found.undefined) == undefined
    assert sorted(found.exported) == sorted(name for _, section, name in rows if section != "UND")
    weak = {name for binding, section, name in rows if binding == "WEAK" and section == "UND"}
    assert {symbol.name for symbol in found.undefined if symbol.weak} == weak
    assert {version for _, version in found.versions} == set(re.findall(r"Name: (\S+)\s+Flags", said))
    assert not found.executable_stack


@pytest.mark.parametrize("cut", [0, 5, 40, 100, 400])
def test_a_cut_file_is_an_error_not_a_crash(sample: bytes, cut: int) -> None:
    with pytest.raises(VerifyError, match="not a readable 64-bit"):
        elf.parse(sample[:cut], name="cut.so")


def test_an_executable_is_not_a_library(sample: bytes) -> None:
    with pytest.raises(VerifyError, match=r"type ET_EXEC, expected ET_DYN"):
        elf.parse(sample[:16] + b"\2\0" + sample[18:], name="x")


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        (["GLIBC_2.17"], "manylinux_2_17"),
        (["GLIBC_2.34", "GLIBCXX_3.4.29", "CXXABI_1.3.9"], "manylinux_2_34"),
        (["GLIBC_2.17", "GLIBCXX_3.4.29"], "manylinux_2_34"),
        (["GLIBC_2.35"], "manylinux_2_35"),
        (["GLIBC_2.28", "GCC_3.0", "GLIBC_PRIVATE"], "manylinux_2_28"),
        (["GLIBC_2.9"], "manylinux_2_17"),
    ],
)
def test_platform_tag(versions: list[str], expected: str) -> None:
    assert policy.lowest(versions).name == expected
    assert policy.lowest(versions).tag(Platform.AARCH64) == f"{expected}_aarch64"


def test_no_policy_for_the_future() -> None:
    with pytest.raises(VerifyError, match=r"no manylinux policy up to manylinux_2_41 allows GLIBC_2\.99"):
        policy.lowest(["GLIBC_2.99"])


def test_policies_are_auditwheels() -> None:
    """The copy of auditwheel's table equals the original, where that is installed (requirements-dev.txt)."""
    module = pytest.importorskip("auditwheel.policy")
    original = json.loads((Path(module.__file__).parent / "manylinux-policy.json").read_text(encoding="utf-8"))
    platforms = ("x86_64", "aarch64")
    known = {item["name"]: item["symbol_versions"] for item in original}
    for ours in policy.POLICIES:
        for kind, field in (("GLIBC", "glibc"), ("GLIBCXX", "glibcxx"), ("CXXABI", "cxxabi"), ("GCC", "gcc")):
            ceilings = []
            for platform in platforms:
                texts = known[ours.name][platform][kind]
                ceilings.append(max(parsed[1] for text in texts if (parsed := policy.version(f"{kind}_{text}"))))
            assert min(ceilings) == getattr(ours, field), f"{ours.name} {kind}"


SASS = f"""
Fatbin elf code:
================
arch = sm_121
code version = [1,8]
compressed

\tcode for sm_121
\t\tFunction : {forward_name(causal=True)}
\t.headerflags\t@"EF_CUDA_SM121"
        /*0000*/                   LDC R1, c[0x0][0x37c] ;             /* 0x0000df00ff017b82 */
                                                                       /* 0x000e700000000800 */
        /*0010*/              @!P0 LDGSTS.E.BYPASS.128 [R3], desc[UR4][R2.64] ;  /* 0x0 */
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;         /* 0x0 */
        /*0030*/               @P1 STL.64 [R1+0x8], R4 ;               /* 0x0 */
        /*0040*/                   LDL R4, [R1+0x8] ;                  /* 0x0 */
        /*0050*/               @UP0 UMOV UR4, 0x400 ;                  /* 0x0 */
        /*0060*/                   NOP ;                               /* 0x0 */

Fatbin elf code:
================
arch = sm_90a

\t\tFunction : _Zother
        /*0000*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24 ;  /* 0x0 */
"""
USAGE = f"""
arch = sm_121

Resource usage:
 Common:
  GLOBAL:11 CONSTANT[4]:88
 Function {forward_name(causal=True)}:
  REG:255 STACK:8 SHARED:1024 LOCAL:0 CONSTANT[0]:1944 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_machine_code_is_counted_a_kernel_and_image() -> None:
    code = kernels.parse_sass(SASS)
    assert set(code) == {("sm_121", forward_name(causal=True)), ("sm_90a", "_Zother")}
    counts = code["sm_121", forward_name(causal=True)]
    assert (counts.instructions, counts.tensor_core, counts.async_copies) == (6, 1, 1)
    assert (counts.spill_stores, counts.spill_loads) == (1, 1)
    assert code["sm_90a", "_Zother"].tensor_core == 1
    (kernel,) = join(code, kernels.parse_usage(USAGE), origin="x.so")
    assert (kernel.kind, kernel.registers, kernel.stack, kernel.static_smem) == ("forward", 255, 8, 1024)


def test_a_kernel_without_machine_code_is_an_error() -> None:
    usage = {("sm_121", "_Zgone"): kernels.Usage(registers=1, stack=0, static_smem=0)}
    with pytest.raises(VerifyError, match=r"no machine code was read for _Zgone"):
        join({}, usage, origin="x.so")


def test_listing() -> None:
    text = "ELF file    1: lib.1.sm_121.cubin\nELF file    2: lib.2.sm_90a.cubin\nPTX file    1: lib.1.sm_121.ptx\n"
    assert kernels.parse_listing(text) == ("sm_121", "sm_90a", "sm_121")


def test_schemas_from_source_and_library() -> None:
    source = "\n".join(
        f'm.def("{text[: len(text) // 2]}"\n    "{text[len(text) // 2 :].replace("=", " = ")}");'
        for text in SCHEMAS.values()
    )
    assert schemas.from_source(source, origin="api.cpp") == SCHEMAS
    data = b"\0junk\0" + b"\0".join(text.encode() for text in SCHEMAS.values()) + b"\0fwd_other\0"
    assert schemas.from_library(data, origin="x.so") == SCHEMAS
    with pytest.raises(VerifyError, match=r"no m\.def of bwd"):
        schemas.from_source(re.sub(r'm\.def\("bwd\(', 'm.def("gone(', source), origin="api.cpp")
    with pytest.raises(VerifyError, match="two different schemas of fwd"):
        schemas.from_library(data + b"fwd(Tensor q) -> Tensor\0", origin="x.so")


def test_build_paths() -> None:
    data = b"\0/usr/lib/x\0 src/hopper/tile.h\0at /home/me/build/tile.h:3\0/proc/self/maps\0"
    assert build_paths(data) == ("/home/me/build/tile.h:3",)
    assert build_paths(b"\0/tmp\0") == ()
