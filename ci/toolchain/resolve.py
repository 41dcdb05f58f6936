"""Resolve a toolchain for (host, target), and check that it can make what a plan asks of it."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path

from ci.plan.platforms import Platform
from ci.settings import Settings
from ci.toolchain.hostcxx import find_cxx
from ci.toolchain.installed import RUNTIME, ask_nvcc, nvcc_version, read_toolkit
from ci.toolchain.packages import identity, unpacked
from ci.toolchain.pins import Pins, read_pins
from flash_attn3_sm121.errors import ToolchainError, UsageError


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


def machine(name: str | None = None) -> str:
    """The name of a machine as wheels spell it; this machine's by default."""
    raw = platform.machine() if name is None else name
    try:
        return str(Platform.parse(raw))
    except UsageError as error:
        known = " and ".join(Platform)
        raise ToolchainError(f"no CUDA compiler for machine {raw!r}; there is one for {known} (Linux)") from error


def resolve(
    settings: Settings,
    *,
    host: str | None = None,
    target: str | None = None,
    cuda_home: Path | None = None,
    cxx: str | None = None,
    pins: Pins | None = None,
) -> Toolchain:
    """The toolchain that runs here and makes libraries for `target`.

    Args:
        host: the machine that compiles (default: this one).
        target: the machine that the libraries are for (default: `host`).
        cuda_home: an installed toolkit, instead of the pinned packages.
        cxx: the host compiler to use (default: the first usable g++).
        pins: the toolchain's lock (default: the repository's).

    Raises:
        ToolchainError: a compiler or a piece of a toolkit is missing, or too old or new.
        FetchError: a pinned package cannot be had.
    """
    host = machine(host)
    target = machine(target) if target else host
    if cuda_home is not None:
        return _installed(cuda_home.absolute(), host, target, settings, cxx)
    pins = pins or read_pins()
    wheels = [package.wheels[host] for package in pins.packages]
    label = f"CUDA {pins.cuda[0]}.{pins.cuda[1]} compiler for {host}"
    root = unpacked(wheels, pins, settings, label=label)
    runtime = root
    if target != host:
        wheel = pins.package(pins.runtime).wheels[target]
        runtime = unpacked([wheel], pins, settings, label=f"CUDA runtime for {target}")
    found = nvcc_version(ask_nvcc(root / "bin" / "nvcc", settings))
    if found != pins.cuda:
        raise ToolchainError(f"the pinned nvcc says it is {found}, the lock says {pins.cuda}")
    return _toolchain(
        host=host,
        target=target,
        root=root,
        include=root / "include",
        cudart_dir=runtime / "lib",
        version=found,
        origin="pinned packages",
        content=identity([*wheels, pins.package(pins.runtime).wheels[target]]),
        asked=cxx,
        settings=settings,
    )


def _installed(home: Path, host: str, target: str, settings: Settings, cxx: str | None) -> Toolchain:
    toolkit = read_toolkit(home, settings, host=host, target=target)
    return _toolchain(
        host=host,
        target=target,
        root=home,
        include=toolkit.include,
        cudart_dir=toolkit.cudart_dir,
        version=toolkit.version,
        origin=str(home),
        content=toolkit.identity,
        asked=cxx,
        settings=settings,
    )


def _toolchain(
    *,
    host: str,
    target: str,
    root: Path,
    include: Path,
    cudart_dir: Path,
    version: tuple[int, int],
    origin: str,
    content: str,
    asked: str | None,
    settings: Settings,
) -> Toolchain:
    if not (cudart_dir / RUNTIME).is_file():
        raise ToolchainError(f"no {RUNTIME} in {cudart_dir}")
    command, cxx_version = find_cxx(host, target, settings, include=include, asked=asked)
    words = [content, target, f"{version[0]}.{version[1]}", cxx_version]
    includes = tuple(folder for folder in (include, include / "cccl") if folder.is_dir())
    return Toolchain(
        host=host,
        target=target,
        root=root,
        nvcc=root / "bin" / "nvcc",
        ptxas=root / "bin" / "ptxas",
        cuobjdump=root / "bin" / "cuobjdump",
        nvdisasm=root / "bin" / "nvdisasm",
        include_dirs=includes,
        cudart_dir=cudart_dir,
        cxx=command,
        cxx_version=cxx_version,
        version=version,
        origin=origin,
        fingerprint=hashlib.sha256("\n".join(words).encode()).hexdigest(),
    )
