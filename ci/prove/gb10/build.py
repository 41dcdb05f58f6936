"""The executor's C++, compiled for this machine into the cache: a Python module, and an allocator to preload."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from ci.cache.folders import locked, making
from ci.process import output_of
from flash_attn3_sm121.errors import CompileError

FOLDER = Path(__file__).parent
MODULE, ARENA = "gb10_executor.so", "gb10_arena.so"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math")


@dataclass(frozen=True, kw_only=True)
class Executor:
    """Where the compiled parts are."""

    folder: Path

    @property
    def arena(self) -> Path:
        return self.folder / ARENA


def _sources() -> list[Path]:
    return sorted(FOLDER.glob("*.cpp")) + sorted(FOLDER.glob("*.h"))


def _key(cxx: str, pybind: str) -> str:
    """Everything that the machine code depends on, but no path; -march=native makes the CPU a part of it.

    Args:
        pybind: pybind11's version.
    """
    total = hashlib.sha256(output_of([cxx, "-march=native", "-Q", "--help=target", "--version"]).encode())
    python = [sys.version, sysconfig.get_config_var("SOABI")]
    total.update(json.dumps([FLAGS, pybind, *python]).encode())
    for path in _sources():
        total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def executor(cache: Path, *, cxx: str = "g++") -> Executor:
    """The compiled executor, made now if the cache lacks it (about a minute).

    Raises:
        CompileError: there is no pybind11, or the compiler failed.
    """
    try:
        import pybind11
    except ImportError as error:
        raise CompileError(
            "the executor needs pybind11", hint="make venv installs it (requirements-dev.txt)"
        ) from error
    includes = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    entry = f"gb10/{_key(cxx, pybind11.__version__)}"
    with locked(cache, entry):
        if not (cache / entry / MODULE).is_file():
            with making(cache, entry) as folder:
                _compile(cxx, includes, folder)
    return Executor(folder=cache / entry)


def _compile(cxx: str, includes: list[str], folder: Path) -> None:
    words = [word for include in includes for word in ("-isystem", include)]
    files = [str(path) for path in sorted(FOLDER.glob("*.cpp"))]
    arena = str(FOLDER / "arena.cpp")
    english = {**os.environ, "LC_ALL": "C"}
    modules = (name for name in files if name != arena)
    output_of([cxx, *FLAGS, "-shared", *words, *modules, "-o", folder / MODULE], env=english)
    output_of([cxx, *FLAGS, "-shared", arena, "-o", folder / ARENA], env=english)
