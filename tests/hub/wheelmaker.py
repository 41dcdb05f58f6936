"""Small wheels with the true package in them and a library that is an ELF file, if an empty one."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from flash_attn3_sm121._version import __version__
from flash_attn3_sm121.call.schemas import PUBLIC
from flash_attn3_sm121.native.buildfacts import BuildFacts

PACKAGE = "flash_attn3_sm121"
SOURCE = Path(__file__).parents[2] / PACKAGE
EM = {"linux_x86_64": 62, "linux_aarch64": 183}


def elf(platform: str, payload: bytes = b"") -> bytes:
    """A shared object's header for a platform, and some bytes behind it."""
    ident = b"\x7fELF" + bytes([2, 1, 1, 0]) + bytes(8)
    return ident + struct.pack("<HHIQQQIHHHHHH", 3, EM[platform], 1, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0) + payload


def copy_hub(source: Path, target: Path) -> None:
    """A hub of one's own: files that are one file stay one, links stay links."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def package_sources() -> dict[str, bytes]:
    """Every file of the package as it is in the repository."""
    return {
        f"{PACKAGE}/{path.relative_to(SOURCE).as_posix()}": path.read_bytes()
        for path in sorted(SOURCE.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and path.relative_to(SOURCE).parts[0] != "lib"
    }


def facts(platform: str, library: bytes, *, proxy: bool = False) -> BuildFacts:
    return BuildFacts(
        family="sm8x",
        effective_arch=86,
        library="flash_attn3_sm8x.so",
        sha256=hashlib.sha256(library).hexdigest(),
        namespace="flash_attn3_sm8x",
        images=("sm_121",),
        ptx=(),
        dtypes=("bf16", "fp16"),
        head_dims=(64, 128),
        backward_head_dims=(64, 128),
        features=("backward", "causal"),
        smem_limit=101376,
        profile="nanochat",
        platform=platform,
        cuda="13.0",
        upstream="3effce8",
        proxy=proxy,
    )


def write_wheel(
    folder: Path,
    *,
    platform: str | None = "linux_x86_64",
    version: str = __version__,
    verdict: str | None = "pass",
    about: Mapping[str, object] | None = None,
    proxy: bool = False,
    local: str = "g3effce8.121.nanochat",
    library: bytes = b"",
    extra: Mapping[str, bytes] | None = None,
    drop: frozenset[str] = frozenset(),
    falsify: Mapping[str, bytes] | None = None,
    small: bool = False,
    modes: Mapping[str, int] = MappingProxyType({}),
) -> Path:
    """Write a wheel; `platform` None is the pure one. `falsify` changes content after RECORD was made."""
    sources = package_sources()
    if small:  # enough to be published, not to be imported
        sources = {name: sources[name] for name in (f"{PACKAGE}/__init__.py", f"{PACKAGE}/errors.py")}
    files = {**sources, f"{PACKAGE}.pth": f"{PACKAGE}/_dropin\n".encode()}
    tag, full = "py3-none-any", version
    if platform is not None:
        code = elf(platform, library)
        built = facts(platform, code, proxy=proxy)
        files[f"{PACKAGE}/lib/{built.library}"] = code
        files[f"{PACKAGE}/lib/sm8x.json"] = built.to_json().encode()
        files[f"{PACKAGE}/lib/provenance.json"] = json.dumps({"schema": 1, "op_schemas": PUBLIC}).encode()
        if verdict is not None:
            seen = {built.library: {"sha256": built.sha256}} if about is None else about
            report = {"schema": 1, "verdict": verdict, "libraries": seen}
            files[f"{PACKAGE}/lib/verify.json"] = json.dumps(report).encode()
        tag = f"py3-none-manylinux_2_34_{platform.removeprefix('linux_')}"
        full = f"{version}+{local}"
    info = f"{PACKAGE}-{full}.dist-info"
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.4\nName: {PACKAGE}\nVersion: {full}\nRequires-Python: >=3.10\n\nFor tests.\n"
    ).encode()
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n".encode()
    files[f"{info}/licenses/LICENSE"] = b"BSD-3-Clause\n"
    files = {name: data for name, data in {**files, **(extra or {})}.items() if name not in drop}
    rows = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for name, data in files.items()
    ]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]).encode() + b"\n"
    files.update(falsify or {})
    path = folder / f"{PACKAGE}-{full}-{tag}.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info_of = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info_of.compress_type = zipfile.ZIP_DEFLATED
            info_of.external_attr = modes.get(name, 0o100644) << 16
            archive.writestr(info_of, data)
    return path
