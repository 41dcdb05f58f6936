"""Which CUDA version a plan is for, and an installed toolkit (`--cuda-home`): where its tools lie."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from ci.process import execute, failure_text
from ci.settings import Settings
from ci.toolchain.pins import read_pins
from flash_attn3_sm121.errors import ToolchainError

# Toolkits keep a target's libraries here; the plain folders serve the host itself.
LIBRARY_FOLDERS = {
    "x86_64": ("targets/x86_64-linux/lib", "lib64", "lib"),
    "aarch64": ("targets/sbsa-linux/lib", "targets/aarch64-linux/lib", "lib64", "lib"),
}
RUNTIME = "libcudart_static.a"


@dataclass(frozen=True, kw_only=True)
class Toolkit:
    """A folder with a CUDA toolkit."""

    root: Path
    version: tuple[int, int]
    include: Path
    cudart_dir: Path
    identity: str  # changes with its contents; holds no path


def parse_version(text: str, *, origin: str) -> tuple[int, int]:
    """(13, 0) of "13.0" or "13.0.88"."""
    parts = text.split(".")
    if len(parts) < 2 or not all(part.isdigit() for part in parts[:2]):
        raise ToolchainError(f"{origin}: expected a CUDA version such as 13.0, found {text!r}")
    return int(parts[0]), int(parts[1])


def format_version(version: tuple[int, int]) -> str:
    """ "13.0" of (13, 0)."""
    return ".".join(str(part) for part in version)


def planned_version(cuda_home: Path | None = None) -> tuple[int, int]:
    """The version of the pinned packages, or of a toolkit's folder, from its version.json. Runs and fetches nothing."""
    if cuda_home is None:
        return read_pins().cuda
    path = cuda_home / "version.json"
    if not path.is_file():
        raise ToolchainError(
            f"no CUDA toolkit in {cuda_home}: {path} is missing", hint="give the folder that holds bin/nvcc"
        )
    data = json.loads(path.read_text(encoding="utf-8"))
    return parse_version(str(data.get("cuda_nvcc", data.get("cuda", {})).get("version", "")), origin=str(path))


def nvcc_version(text: str) -> tuple[int, int]:
    """The version in `nvcc --version`."""
    match = re.search(r"release (\d+)\.(\d+)", text)
    if match is None:
        raise ToolchainError(f"nvcc --version names no release: {text.strip()!r}")
    return int(match[1]), int(match[2])


def ask_nvcc(nvcc: Path, settings: Settings) -> str:
    """What `nvcc --version` says. Raises ToolchainError quoting the failure."""
    try:
        done = execute([nvcc, "--version"], narrate=settings.narrate)
    except ToolchainError as error:
        raise ToolchainError(
            str(error), hint="it must be a program for this machine, on a file system that allows programs (not noexec)"
        ) from error
    if done.returncode != 0:
        raise ToolchainError(failure_text([nvcc, "--version"], done.returncode, done.stdout + done.stderr))
    return done.stdout


def read_toolkit(home: Path, settings: Settings, *, host: str, target: str) -> Toolkit:
    """The facts of a toolkit folder. Raises ToolchainError that lists everything it lacks."""
    tools = ("nvcc", "ptxas", "cuobjdump", "nvdisasm")
    missing = [f"bin/{tool}" for tool in tools if not (home / "bin" / tool).is_file()]
    folders = LIBRARY_FOLDERS[target] if host == target else LIBRARY_FOLDERS[target][:-2]
    runtime = next((home / folder for folder in folders if (home / folder / RUNTIME).is_file()), None)
    include = next((home / f for f in ("include", f"targets/{target}-linux/include") if (home / f).is_dir()), None)
    if runtime is None:
        missing.append(f"{RUNTIME} for {target} (in any of {', '.join(folders)})")
    if include is None:
        missing.append("include")
    if missing or runtime is None or include is None:
        raise ToolchainError(
            f"{home} is not a complete CUDA toolkit, it lacks: {', '.join(missing)}",
            hint="leave --cuda-home out: the pinned compiler is then fetched",
        )
    text = ask_nvcc(home / "bin" / "nvcc", settings)
    sizes = [(home / "bin" / tool).stat().st_size for tool in tools]
    identity = hashlib.sha256(f"{text}{sizes}{(runtime / RUNTIME).stat().st_size}".encode()).hexdigest()
    return Toolkit(root=home, version=nvcc_version(text), include=include, cudart_dir=runtime, identity=identity)
