"""A stand-in library with its PTX: what can be executed, and how a function is run on it in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci import ROOT
from ci.build.family import Builder
from ci.plan.plan import FamilyPlan
from ci.prove.gb10.build import Executor, executor
from ci.prove.standin import library
from ci.prove.standin.calls import DEVICES
from flash_attn3_sm121.errors import CompileError

TARGET = ".target sm_121"


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
    kernels: tuple[str, ...] = ()  # every kernel for 12.1 that ptxas told of, by mangled name

    def run(
        self,
        function: str,
        arguments: Mapping[str, Any],
        *,
        sms: int = 48,
        settings: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Run:
        """Run `module:name` as name(gpu, **arguments) in a process of its own; it returns what JSON can hold.

        Args:
            sms: how many SMs the GB10 has that is posed as; the host code asks once a process.
            settings: see `child.Gpu`.

        Raises:
            CompileError: the process failed; the message holds what it said.
        """
        document = {
            "library": str(self.library or ""),
            "namespace": self.namespace,
            "ptx": [str(path) for path in self.ptx],
            "executor": str(self.executor.folder),
            "device": {**DEVICES["GB10"].properties, "sms": sms},
            "settings": dict(settings or {}),
            "function": function,
            "arguments": dict(arguments),
        }
        argv = [sys.executable, "-m", "ci.prove.gb10.child"]
        env = {**os.environ, "LD_PRELOAD": str(self.executor.arena), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            argv,
            input=json.dumps(document),
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=env,
            check=False,
            timeout=timeout,
        )
        if done.returncode != 0:
            raise CompileError(f"$ {' '.join(argv)} ({function})\nexit code {done.returncode}\n{done.stderr[-6000:]}")
        found = json.loads(done.stdout)
        return Run(result=found["result"], findings=tuple(found["findings"]), launches=tuple(found["launches"]))


def make(builder: Builder, family: FamilyPlan, *, output: Path) -> Executable:
    """Compile what the object cache lacks of a family, link it with the stand-in runtime, and lay its PTX beside it.

    A family may hold code for several GPUs; that for 12.1 is taken.
    """
    made = library.make(builder, family, output=output)
    files = []
    for report in made.reports:
        for name, text in builder.store.ptx(report).items():
            if TARGET not in text:
                continue
            path = output / name
            path.write_text(text, encoding="utf-8")
            files.append(path)
    if not files:
        raise CompileError(
            "no PTX was kept with these objects", hint="build without --launcher: compiler caches keep none"
        )
    return Executable(
        library=made.stand_in.library,
        namespace=made.stand_in.namespace,
        ptx=tuple(files),
        executor=executor(builder.settings.cache),
        keys=tuple(report.key for report in made.reports),
        kernels=tuple(use.kernel for report in made.reports for use in report.usage if use.image == "sm_121"),
    )
