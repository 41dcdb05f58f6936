"""The command line of a unit, what compilers see of the environment, and how a failed one is told."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ci.plan import flags
from ci.plan.plan import PlannedUnit
from ci.plan.units import Unit
from ci.process import failure_text
from ci.toolchain import Toolchain
from flash_attn3_sm121.errors import CompileError, DiskError

FREE_DISK_GB = 2.0  # intermediate files of one large unit, with room to spare


def path_map(toolchain: Toolchain) -> str:
    """The one flag that holds a path of this machine: it takes that path out of the object. Not part of the key."""
    return f"-ffile-prefix-map={toolchain.root}=cuda"


def command(planned: PlannedUnit, *, toolchain: Toolchain, launcher: str | None) -> list[str]:
    """The whole command line, to be run in the family's work folder."""
    unit = planned.unit
    files = ["-c", f"units/{unit.file}", "-o", f"obj/{unit.object}"]
    prefix = [launcher] if launcher else []
    if not unit.is_cuda:
        includes = [word for folder in toolchain.include_dirs for word in ("-isystem", str(folder))]
        return [*prefix, toolchain.cxx, *planned.flags, path_map(toolchain), *includes, *files]
    # nvcc hands this word to a shell as it is.
    host = ["-ccbin", toolchain.cxx, f"-Xcompiler={shlex.quote(path_map(toolchain))}"]
    return [
        *prefix,
        str(toolchain.nvcc),
        *host,
        *planned.flags,
        *flags.naming_flags(unit),
        *_keep(unit, launcher),
        *files,
    ]


def _keep(unit: Unit, launcher: str | None) -> tuple[str, ...]:
    """Compiler caches refuse --keep (their objects are sound, but not bit-identical to ours); ccache wants to be told
    what the file depends on, and by the compiler."""
    if launcher is None:
        return flags.keep_flags(unit)
    return ("-MD", "-MF", f"obj/{unit.name}.d") if launcher == "ccache" else ()


def environment(base: Mapping[str, str], *, folder: Path, launcher: str | None, fingerprint: str) -> dict[str, str]:
    """The environment that a compiler gets. It holds nothing that could change an object; only the command line does.

    Args:
        folder: the family's work folder, which holds the temporary files too.
        fingerprint: the toolchain's, for ccache.
    """
    kept = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "SCCACHE_", "CCACHE_", "AWS_", "ACTIONS_", "GITHUB_")
    env = {name: value for name, value in base.items() if name.startswith(kept)}
    env |= {"LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
    if launcher != "sccache":
        # sccache's server would keep this folder for good, beyond the run that it belongs to.
        env["TMPDIR"] = str(folder / "tmp")
    if launcher == "ccache":
        # ccache's default mode can serve a stale object for CUDA: it must look at real dependencies, and tell
        # toolchains apart by our fingerprint instead of the driver binary's time stamp.
        env |= {"CCACHE_DEPEND": "1", "CCACHE_COMPILERCHECK": f"string:{fingerprint}"}
    return env


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn "no space left" of our own writes into an error that says where."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise disk_full(folder) from error


def disk_full(folder: Path, *, what: str = "") -> DiskError:
    return DiskError(
        f"no space left on the disk of {folder}" + (f"\n{what}" if what else ""),
        hint="free some space, or set FA3_CACHE to a folder on another disk; finished units are kept",
    )


def check_space(folder: Path, *, free_gb: float) -> None:
    """Raise DiskError, before anything is compiled, where there is no room for the intermediate files."""
    if free_gb < FREE_DISK_GB:
        raise disk_full(folder, what=f"found {free_gb:.2f} GB free, expected at least {FREE_DISK_GB:.0f} GB")


def free_gb(folder: Path) -> float:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize / 1e9


def failure(argv: Sequence[str], code: int, output: str, *, log: Path, work: Path) -> CompileError | DiskError:
    """The error for a failed compiler or linker: command, exit code, end of the output, where the whole of it is."""
    text = failure_text(argv, code, output)
    if "No space left on device" in output:
        return disk_full(work, what=text)
    hint = f"the whole output is in {log}"
    if code in (-9, 137):
        hint = f"killed, most likely for want of memory: try JOBS=1; {hint}"
    return CompileError(text, hint=hint)
