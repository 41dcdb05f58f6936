"""A stand-in library with its PTX: what can be executed, and how a function is run on it in a process of its own."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ci import ROOT
from ci.build.family import Builder
from ci.cache.folders import file_sha256
from ci.plan.plan import FamilyPlan
from ci.process import execute
from ci.prove.gb10.build import FOLDER, Executor, executor
from ci.prove.gb10.cases import Case
from ci.prove.standin import library
from ci.prove.standin.calls import DEVICES
from ci.verify.executed import IMAGE
from flash_attn3_sm121.errors import CompileError

# How the PTX files of attention kernels are named: a unit is of one sort of kernels and one head dim.
_ATTENTION = re.compile(r"((?:fwd|bwd)(?:_[a-z]+\d?)?)_hd(\d+(?:_\d+)?)_")
# What a case's result depends on beside the C++; which cases there are, and what is said of results, is no part of it.
_CHECKS = ("child.py", "check.py", "check_fwd.py", "check_bwd.py", "reference.py")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a function returned, and what was seen meanwhile."""

    result: Any
    findings: tuple[dict[str, Any], ...]
    launches: tuple[dict[str, Any], ...]

    @property
    def errors(self) -> tuple[dict[str, Any], ...]:
        return tuple(found for found in self.findings if not found["note"])


@dataclass(frozen=True, kw_only=True)
class Executable:
    """A library linked with the stand-in runtime, its PTX files, and the executor. Without a library: only PTX."""

    library: Path | None
    namespace: str
    ptx: tuple[Path, ...]
    executor: Executor
    keys: tuple[str, ...] = ()  # of the objects
    host: str = ""  # the host code's object, by its hash
    kernels: Mapping[str, str] = field(default_factory=dict)  # the PTX's hash of each that ptxas told of, by its name

    def needed(self, case: Case) -> tuple[Path, ...]:
        """The PTX files that a call may need: helpers', and those of its own sort of kernels and head dims."""
        return _needed(self.ptx, case.group, case.dim, case.dim_v)

    def identity(self, case: Case) -> str:
        """A hash of what such a call's result depends on: executor, checks, host code, the PTX it can need."""
        own = sorted((*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h")))
        files = (library.SOURCE, *own, *(FOLDER / name for name in _CHECKS), *self.needed(case))
        return hashlib.sha256("\n".join((self.host, *map(_named_hash, files))).encode()).hexdigest()

    def run(
        self,
        function: str,
        arguments: Mapping[str, Any],
        *,
        sms: int = 48,
        ptx: Sequence[Path] | None = None,
        settings: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        python: str = sys.executable,
    ) -> Run:
        """Run `module:name` as name(gpu, **arguments) in a process of its own; it returns what JSON can hold.

        Args:
            sms: how many SMs the GB10 has that is posed as; the host code asks once a process.
            ptx: the files that are read; all, where it is left out.
            settings: see `child.Gpu`.
            python: of this version, with torch; another one where the function needs packages that this one lacks.

        Raises:
            CompileError: the process failed; the message holds what it said.
            KeyboardInterrupt: somebody stopped the process, so there is no result to keep.
        """
        document = {
            "library": str(self.library or ""),
            "namespace": self.namespace,
            "ptx": [str(path) for path in (self.ptx if ptx is None else ptx)],
            "executor": str(self.executor.folder),
            "device": {**DEVICES["GB10"].properties, "sms": sms},
            "settings": dict(settings or {}),
            "function": function,
            "arguments": dict(arguments),
        }
        argv = [python, "-m", "ci.prove.gb10.child"]
        env = {**os.environ, "LD_PRELOAD": str(self.executor.arena), "OMP_NUM_THREADS": "1"}
        done = execute(argv, stdin=json.dumps(document), cwd=ROOT, env=env, timeout=timeout)
        if -done.returncode in (signal.SIGINT, signal.SIGTERM):
            raise KeyboardInterrupt
        if done.returncode != 0:
            raise CompileError(f"$ {' '.join(argv)} ({function})\nexit code {done.returncode}\n{done.stderr[-6000:]}")
        found = json.loads(done.stdout)
        return Run(result=found["result"], findings=tuple(found["findings"]), launches=tuple(found["launches"]))


@functools.cache
def _needed(files: tuple[Path, ...], group: str, dim: int, dim_v: int) -> tuple[Path, ...]:
    named = {path: _ATTENTION.match(path.name) for path in files}
    # The backward pads to the larger head dim.
    asked = (dim, dim_v) if dim_v and group.startswith("fwd") else (max(dim, dim_v),)
    dims = {tuple(map(int, name[2].split("_"))) for name in named.values() if name and name[1] == group}
    fitting = [known for known in dims if len(known) == len(asked) and all(map(operator.ge, known, asked))]
    mine = (group, "_".join(map(str, min(fitting, default=()))))
    return tuple(path for path, name in named.items() if name is None or name.groups() == mine)


@functools.cache
def _named_hash(path: Path) -> str:
    return f"{path.name} {file_sha256(path)}"


def make(builder: Builder, family: FamilyPlan, *, output: Path) -> Executable:
    """Compile what the object cache lacks of a family, link it with the stand-in runtime, and lay its PTX beside it.

    A family may hold code for several GPUs; that for 12.1 is taken.
    """
    made = library.make(builder, family, output=output)
    files: list[Path] = []
    for report in made.reports:
        for name, text in builder.store.ptx(report).items():
            if f".target {IMAGE}\n" not in text:
                continue
            path = output / name
            path.write_text(text, encoding="utf-8")
            files.append(path)
    hashes = builder.store.kernels(made.reports, IMAGE)
    if not files:
        raise CompileError(
            "no PTX was kept with these objects", hint="build without --launcher: compiler caches keep none"
        )
    return Executable(
        library=made.library,
        namespace=made.namespace,
        ptx=tuple(files),
        executor=executor(builder.settings.cache),
        keys=tuple(report.key for report in made.reports),
        host=" ".join(report.sha256 for report in made.reports if not report.usage),
        kernels={use.kernel: hashes[use.kernel] for unit in made.reports for use in unit.usage if use.image == IMAGE},
    )
