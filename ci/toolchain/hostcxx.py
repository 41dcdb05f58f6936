"""The host's C++ compiler: g++ for the target, of a version that the CUDA compiler at hand accepts."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from ci.process import execute
from ci.settings import Settings
from flash_attn3_sm121.errors import ToolchainError

MINIMUM = 9  # the first g++ whose C++17 library is complete enough for CUTLASS and torch's headers
PACKAGES = {"aarch64": "g++-aarch64-linux-gnu", "x86_64": "g++-x86-64-linux-gnu"}


def candidates(host: str, target: str, *, newest: int) -> list[str]:
    """The commands to try, the plain name first, then versioned ones from the newest allowed down."""
    plain = "g++" if host == target else f"{target}-linux-gnu-g++"
    return [plain, *(f"{plain}-{version}" for version in range(newest, MINIMUM - 1, -1))]


def newest_allowed(include: Path) -> int:
    """The newest g++ that this CUDA accepts, as its own header says."""
    header = include / "crt" / "host_config.h"
    try:
        match = re.search(r"__GNUC__\s*>\s*(\d+)", header.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise ToolchainError(f"cannot read {header}: {error.strerror}") from error
    if match is None:
        raise ToolchainError(f"{header}: names no newest g++")
    return int(match[1])


def refusal(name: str, version: str, *, newest: int) -> str | None:
    """Why a compiler of that version cannot be used, or None."""
    match = re.match(r"(\d+)", version)
    if match is None:
        return f"{name}: no version in {version!r}"
    major = int(match[1])
    if not MINIMUM <= major <= newest:
        return f"{name} is version {version}; this CUDA wants {MINIMUM} to {newest}"
    return None


def find_cxx(host: str, target: str, settings: Settings, *, include: Path) -> tuple[str, str]:
    """(command, version) of the first usable compiler. Raises ToolchainError with every refusal and the apt line."""
    newest = newest_allowed(include)
    refusals = []
    for name in candidates(host, target, newest=newest):
        path = shutil.which(name)
        if path is None:
            if not name[-1].isdigit():
                refusals.append(f"{name} is not installed")
            continue
        answer = execute([path, "-dumpfullversion", "-dumpversion"], narrate=settings.narrate)
        machine = execute([path, "-dumpmachine"], narrate=settings.narrate).stdout.strip()
        version = answer.stdout.strip()
        if answer.returncode != 0:
            refusals.append(f"{path} failed ({answer.returncode}): {answer.stderr.strip()}")
        elif machine.partition("-")[0] != target:
            refusals.append(f"{path} compiles for {machine}, not for {target}")
        elif (reason := refusal(path, version, newest=newest)) is not None:
            refusals.append(reason)
        else:
            return path, version
    package = "g++" if host == target else PACKAGES[target]
    raise ToolchainError(
        f"no usable C++ compiler for {target}: {'; '.join(refusals)}", hint=f"sudo apt-get install {package}"
    )
