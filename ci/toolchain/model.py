"""What resolving a toolchain gives: the tools' paths, and one string that names them for cache keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """A CUDA compiler that runs on `host` and makes libraries for `target` (both: x86_64 or aarch64)."""

    host: str
    target: str
    root: Path  # CUDA_HOME for the tools: bin/, nvvm/, include/, lib/
    nvcc: Path
    ptxas: Path
    cuobjdump: Path
    nvdisasm: Path
    include_dirs: tuple[Path, ...]  # for a plain C++ compile; nvcc finds them by itself
    cudart_dir: Path  # holds the target's libcudart_static.a: link with -L here
    cxx: str  # host compiler for the target (nvcc -ccbin); also the linker
    cxx_version: str
    version: tuple[int, int]  # CUDA version, e.g. (13, 0)
    origin: str  # "pinned packages" or the toolkit's folder
    fingerprint: str  # changes whenever what the tools produce may change; holds no path
