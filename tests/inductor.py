"""Whether torch's inductor can compile for the CPU here: its C++ wants a compiler and Python's headers."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest


def missing() -> str:
    """What it lacks, with the package that brings it; empty where it lacks nothing."""
    if shutil.which("g++") is None:
        return "no g++: apt-get install g++"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "no Python.h: apt-get install python3-dev"
    return ""


needs_inductor = pytest.mark.skipif(
    bool(missing()), reason=f"inductor compiles C++ for the CPU, and there is {missing()}"
)
