"""Resolve a toolchain for (host, target), and check that it can make what a plan asks of it."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path

from ci.plan.archs import Platform
from ci.settings import Settings
from ci.toolchain.hostcxx import find_cxx
from ci.toolchain.installed import RUNTIME, Toolkit, ask_nvcc, format_version, nvcc_version, read_toolkit
from ci.toolchain.packages import identity, unpacked
from ci.toolchain.pins import Pins, read_pins
from flash_attn3_sm121.errors import ToolchainError


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """A CUDA compiler that runs on `host` and makes libraries for `target` (both: x86_64 or aarch64)."""

    host: str
    target: str
    root: Path  # CUDA_HOME for the tools: bin/, nvvm/, include/, lib/
    nvcc: Path
    cuobjdump: Path
    include_dirs: tuple[Path, ...]  # for a plain C++ compile; nvcc finds them by itself
    cudart_dir: Path  # holds the target's libcudart_static.a: link with -L here
    cxx: str  # host compiler for the target (nvcc -ccbin); also the linker
    cxx_version: str
    version: tuple[int, int]  # CUDA version, e.g. (13, 0)
    origin: str  # "pinned packages" or the toolkit's folder
    fingerprint: str  # changes whenever what the tools produce may change; holds no path

    @property
    def cuda(self) -> str:
        return format_version(self.version)


def resolve(
    settings: Settings,
    *,
    target: str | None = None,
    cuda_home: Path | None = None,
    pins: Pins | None = None,
) -> Toolchain:
    """The toolchain that runs here and makes libraries for `target`.

    Args:
        target: the machine that the libraries are for (default: this one).
        cuda_home: an installed toolkit, instead of the pinned packages.
        pins: the toolchain's lock (default: the repository's).

    Raises:
        UsageError: there is no CUDA compiler for such a machine.
        ToolchainError: a compiler or a piece of a toolkit is missing, or too old or new.
        FetchError: a pinned package cannot be had.
    """
    host = str(Platform.parse(platform.machine()))
    target = str(Platform.parse(target or host))
    if cuda_home is None:
        toolkit = _pinned(pins or read_pins(), settings, host=host, target=target)
    else:
        toolkit = read_toolkit(cuda_home.absolute(), settings, host=host, target=target)
    if not (toolkit.cudart_dir / RUNTIME).is_file():
        raise ToolchainError(f"no {RUNTIME} in {toolkit.cudart_dir}")
    include, tools = toolkit.include, toolkit.root / "bin"
    cxx, cxx_version = find_cxx(host, target, settings, include=include)
    words = [toolkit.identity, target, format_version(toolkit.version), cxx_version]
    return Toolchain(
        host=host,
        target=target,
        root=toolkit.root,
        nvcc=tools / "nvcc",
        cuobjdump=tools / "cuobjdump",
        include_dirs=tuple(folder for folder in (include, include / "cccl") if folder.is_dir()),
        cudart_dir=toolkit.cudart_dir,
        cxx=cxx,
        cxx_version=cxx_version,
        version=toolkit.version,
        origin="pinned packages" if cuda_home is None else str(toolkit.root),
        fingerprint=hashlib.sha256("\n".join(words).encode()).hexdigest(),
    )


def _pinned(pins: Pins, settings: Settings, *, host: str, target: str) -> Toolkit:
    """The toolkit that the pinned packages make, with the target's static runtime."""
    wheels = [package.wheels[host] for package in pins.packages]
    root = unpacked(wheels, pins, settings, label=f"CUDA {pins.cuda[0]}.{pins.cuda[1]} compiler for {host}")
    runtime, wheel = root, pins.package(pins.runtime).wheels[target]
    if target != host:
        runtime = unpacked([wheel], pins, settings, label=f"CUDA runtime for {target}")
    found = nvcc_version(ask_nvcc(root / "bin" / "nvcc", settings))
    if found != pins.cuda:
        raise ToolchainError(f"the pinned nvcc says it is {found}, the lock says {pins.cuda}")
    return Toolkit(
        root=root,
        version=found,
        include=root / "include",
        cudart_dir=runtime / "lib",
        identity=identity([*wheels, wheel]),
    )
