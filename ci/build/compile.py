"""Compiling one unit: the command, its failure, and the object's way into the cache."""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ci.build import ptxas
from ci.build.children import Children, Outcome
from ci.build.workdir import WorkDir
from ci.cache.folders import locked
from ci.cache.objects import ObjectReport, ObjectStore
from ci.console import Narrator
from ci.plan import flags
from ci.plan.plan import PlannedUnit
from ci.plan.units import Unit
from ci.toolchain import Toolchain
from flash_attn3_sm121.errors import CompileError, DiskError

TAIL_LINES = 30
FREE_DISK_GB = 2.0  # intermediate files of one large unit, with room to spare


def path_map(toolchain: Toolchain) -> str:
    """The one flag that holds a path of this machine: it takes that path out of the object. Not part of the key."""
    return f"-ffile-prefix-map={toolchain.root}=cuda"


def command(planned: PlannedUnit, *, toolchain: Toolchain, work: WorkDir, launcher: str | None) -> list[str]:
    """The whole command line, to be run in the work folder."""
    unit = planned.unit
    files = ["-c", f"units/{unit.file}", "-o", f"obj/{unit.object}"]
    prefix = [launcher] if launcher else []
    if not unit.is_cuda:
        includes = [word for folder in toolchain.include_dirs for word in ("-isystem", str(folder))]
        return [*prefix, toolchain.cxx, *planned.flags, path_map(toolchain), *includes, *files]
    host = ["-ccbin", toolchain.cxx, f"-Xcompiler={path_map(toolchain)}"]
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


def environment(
    base: Mapping[str, str], *, toolchain: Toolchain, work: WorkDir, launcher: str | None
) -> dict[str, str]:
    """What compilers see of the environment: nothing that could change an object beside the command line."""
    kept = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "SCCACHE_", "CCACHE_", "AWS_", "ACTIONS_", "GITHUB_")
    env = {name: value for name, value in base.items() if name.startswith(kept)}
    env |= {"LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
    if launcher != "sccache":
        # sccache's server would keep this folder for good, beyond the run that it belongs to.
        env["TMPDIR"] = str(work.root / "tmp")
    if launcher == "ccache":
        # ccache's default mode can serve a stale object for CUDA: it must look at real dependencies, and tell
        # toolchains apart by our fingerprint instead of the driver binary's time stamp.
        env |= {"CCACHE_DEPEND": "1", "CCACHE_COMPILERCHECK": f"string:{toolchain.fingerprint}"}
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


def check_space(folder: Path, *, free_gb: float, needed_gb: float = FREE_DISK_GB) -> None:
    """Before anything is compiled: is there room for the intermediate files at all?"""
    if free_gb < needed_gb:
        raise disk_full(folder, what=f"found {free_gb:.2f} GB free, expected at least {needed_gb:.0f} GB")


def free_gb(folder: Path) -> float:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize / 1e9


def failure(argv: list[str], code: int, output: str, *, log: Path, work: Path) -> CompileError | DiskError:
    """The error for a failed tool: command, exit code, the end of its output, and where the whole of it is."""
    tail = "\n".join(f"  | {line}" for line in output.splitlines()[-TAIL_LINES:])
    text = f"$ {shlex.join(argv)}\nexit code {code}; its last output:\n{tail}"
    if "No space left on device" in output:
        return disk_full(work, what=text)
    hint = f"the whole output is in {log}"
    if code in (-9, 137):
        hint = f"killed, most likely for want of memory: try JOBS=1; {hint}"
    return CompileError(text, hint=hint)


@dataclass(frozen=True, kw_only=True)
class UnitCompiler:
    """Compiles units into the store. One for a whole build; `compile` may be called from several threads."""

    toolchain: Toolchain
    work: WorkDir
    store: ObjectStore
    children: Children
    narrate: Narrator
    launcher: str | None
    env: Mapping[str, str]

    def compile(self, planned: PlannedUnit, key: str) -> str:
        """Compile one unit unless the store has it by now; returns a line that tells what it took."""
        name = planned.unit.name
        with locked(self.store.cache, self.store.entry(key)):
            if self.store.find(key) is not None:
                return f"{name}: made by another build meanwhile"
            with disk_errors(self.work.root):
                report = self._compile(planned, key)
        kept = "" if report.ptx or not planned.unit.is_cuda else f", no PTX kept ({self.launcher} takes no --keep)"
        return f"{name}: {report.cpu_s:.0f} CPU s, {report.rss_gb:.1f} GB, {report.size / 1e6:.2f} MB{kept}"

    def _compile(self, planned: PlannedUnit, key: str) -> ObjectReport:
        unit = planned.unit
        self.work.write(unit)
        argv = command(planned, toolchain=self.toolchain, work=self.work, launcher=self.launcher)
        log = self.work.root / "keep" / f"{unit.name}.log"
        self.narrate.command(argv)
        ended = self.children.run(argv, cwd=self.work.root, env=self.env, log=log)
        output = log.read_text(encoding="utf-8", errors="replace")
        if ended.code != 0:
            raise self._failed(planned, key, argv, ended, output)
        made = self.work.object(unit)
        ptx = {path.name: path.read_bytes() for path in sorted(self.work.keep(unit).glob("*.ptx"))}
        if unit.is_cuda and self.launcher is None and not ptx:
            raise CompileError(f"{unit.name}: nvcc left no PTX in {self.work.keep(unit)}")
        report = ObjectReport(
            unit=unit.name,
            key=key,
            sha256=hashlib.sha256(made.read_bytes()).hexdigest(),
            size=made.stat().st_size,
            cpu_s=ended.cpu_s,
            wall_s=ended.wall_s,
            rss_gb=ended.rss_gb,
            usage=ptxas.parse(output),
            ptx={name: hashlib.sha256(text).hexdigest() for name, text in ptx.items()},
        )
        self.store.put(report, made=made, log=output, ptx=ptx)
        made.unlink()
        self.work.drop_intermediate(unit)
        return report

    def _failed(
        self, planned: PlannedUnit, key: str, argv: list[str], ended: Outcome, output: str
    ) -> CompileError | DiskError:
        """Clean up after a failed compiler, keep its log outside the work folder, and make the error."""
        self.work.drop_intermediate(planned.unit)
        self.work.object(planned.unit).unlink(missing_ok=True)
        logs = self.store.cache / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        log = logs / f"{planned.unit.name}-{key[:12]}.log"
        log.write_text(f"$ {shlex.join(argv)}\n{output}\nexit code {ended.code}\n", encoding="utf-8")
        return failure(argv, ended.code, output, log=log, work=self.work.root)
