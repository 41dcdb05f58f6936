"""Running ninja: the edges of units that the object cache lacks, progress while they compile, and the first failure.

Ninja stops at the first failure and when it is told to (Ctrl-C, SIGTERM); it takes its compilers along.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from queue import Empty, Queue
from threading import Thread
from typing import IO

import ninja

from ci import ROOT
from ci.build.compile import command
from ci.plan.costs import Concurrency
from ci.plan.ninja import Edge, ninja_text
from ci.plan.plan import BuildPlan, PlannedUnit
from ci.process import failure_text
from ci.toolchain import Toolchain
from flash_attn3_sm121.console import Narrator, Progress, format_seconds
from flash_attn3_sm121.errors import CompileError, DiskError, FlashAttn3Error, ToolchainError
from flash_attn3_sm121.files import put_file

# How often people hear of compilers that are still running: in place on a terminal, as a line of its own in a log.
TERMINAL_TICK_SECONDS = 1.0
LOG_LINE_SECONDS = 60.0
PATIENCE_SECONDS = 20.0  # for ninja to end its compilers before it is killed itself

_STATUS = re.compile(r"(\[\d+/\d+\]) (.*)")
_FAILED = re.compile(r"FAILED: \[code=(\d+)\]")
_ERRORS: dict[int, type[FlashAttn3Error]] = {kind.exit_code: kind for kind in (CompileError, DiskError, ToolchainError)}


def unit_edge(
    planned: PlannedUnit,
    *,
    folder: str,
    output: str,
    options: Sequence[str],
    toolchain: Toolchain,
    launcher: str | None,
) -> Edge:
    """The edge of one of our units. `options` say what becomes of its object."""
    name = planned.unit.name
    return Edge(
        name=f"{folder} {name}",
        folder=folder,
        source=f"units/{planned.unit.file}",
        output=output,
        options=("--unit", name, *options),
        command=tuple(command(planned, toolchain=toolchain, launcher=launcher)),
        cost=planned.cost,
    )


def measuring(cache: Path, *, toolchain: Toolchain, launcher: str | None) -> list[str]:
    """The program in front of each compiler, with what is the same for all units."""
    words = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "ci.build.unit", "--cache", str(cache.absolute())]
    return [*words, *(["--launcher", launcher, "--fingerprint", toolchain.fingerprint] if launcher else [])]


def planned_text(plan: BuildPlan, *, at_once: Concurrency) -> str:
    """The build.ninja of a plan, for people: with names where a build has this machine's paths and the objects' keys.

    Pure: nothing is fetched, and no toolchain is looked for.
    """
    cuda = PurePosixPath("cuda")
    named = Toolchain(
        host="any",
        target=str(plan.platform),
        root=Path(cuda),
        nvcc=Path(cuda / "bin" / "nvcc"),
        cuobjdump=Path(cuda / "bin" / "cuobjdump"),
        include_dirs=(Path(cuda / "include"),),
        cudart_dir=Path(cuda / "lib"),
        cxx="g++",
        cxx_version="",
        version=plan.cuda,
        origin="the plan",
        fingerprint="",
    )
    edges = [
        unit_edge(
            planned, folder=str(family.family), output=f"objects/{family.family}/{planned.unit.object}", options=(),
            toolchain=named, launcher=None,
        )
        for family in plan.families
        for planned in family.of_shard(plan.shard)
    ]  # fmt: skip
    return ninja_text(in_order(edges), measure=["python", "-m", "ci.build.unit"], at_once=at_once)


def in_order(edges: Sequence[Edge]) -> list[Edge]:
    """The edges, the longest first: no core waits for it at the end."""
    return sorted(edges, key=lambda edge: (-edge.cost.cpu_s, edge.name))


@dataclass(frozen=True, kw_only=True)
class Ninja:
    """A build in `root`, where build.ninja is written to and ninja runs."""

    root: Path
    narrate: Narrator
    tick_seconds: float = TERMINAL_TICK_SECONDS
    line_seconds: float = LOG_LINE_SECONDS

    def build(
        self,
        edges: Sequence[Edge],
        *,
        measure: Sequence[str],
        at_once: Concurrency,
        finished: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Make every output that is not there yet.

        Args:
            measure: the program in front of each compiler, from `measuring()`.
            finished: called with an edge's name when its output is there.

        Raises:
            CompileError, DiskError, ToolchainError: a unit failed. The text quotes its command, exit code and output.
        """
        put_file(self.root / "build.ninja", ninja_text(edges, measure=measure, at_once=at_once))
        argv = [str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(self.root), "-j", str(at_once.jobs)]
        self.narrate.command(argv)
        said = _Said(costs={edge.name: edge.cost.cpu_s for edge in edges}, narrate=self.narrate, finished=finished)
        # A session of its own: Ctrl-C reaches ninja from us, once.
        child = subprocess.Popen(
            argv, env={**os.environ, "NINJA_STATUS": "[%f/%t] "}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        lines: Queue[str | None] = Queue()
        reader = Thread(target=_read_lines, args=(child.stdout, lines), daemon=True)
        reader.start()
        try:
            total = sum(edge.cost.cpu_s for edge in edges if not (self.root / edge.output).exists())
            with self.narrate.progress("compiling, as estimated", total, unit="CPU s") as progress:
                self._follow(child, lines, said, progress)
                if child.returncode != 0:
                    raise said.error(argv, child.returncode)
        finally:
            _end(child)
            reader.join()

    def _follow(self, child: subprocess.Popen[str], lines: Queue[str | None], said: _Said, progress: Progress) -> None:
        """Take ninja's lines until it ends; say in between what is being compiled."""
        since: dict[str, float] = {}
        told = time.monotonic()
        while True:
            try:
                line = lines.get(timeout=self.tick_seconds)
            except Empty:
                now = time.monotonic()
                since = {name: since.get(name, now) for name in _running(self.root)}
                if self.narrate.terminal or now - told >= self.line_seconds:
                    told = now
                    names = ", ".join(f"{name} ({format_seconds(now - begun)})" for name, begun in since.items())
                    progress.advance(said.take_done(), detail=names)
                continue
            if line is None:
                break
            said.read(line)
            if said.failure and child.poll() is None:
                child.send_signal(signal.SIGTERM)  # the others are stopped, not waited for
        progress.advance(said.take_done(), detail="")
        child.wait()


def _running(root: Path) -> list[str]:
    """The units that are being compiled: those whose compiler has a log in the work folder."""
    return sorted(path.stem for path in root.glob("*/keep/*.log"))


def _read_lines(output: IO[str], lines: Queue[str | None]) -> None:
    with output:
        for line in output:
            lines.put(line.rstrip("\n"))
    lines.put(None)


def _end(child: subprocess.Popen[str]) -> None:
    """Stop ninja, which stops its compilers; it is gone afterwards in any case."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@dataclass(kw_only=True)
class _Said:
    """Ninja's output: each edge gives a status line, then the line of our program or the failure."""

    costs: dict[str, float]  # edge -> estimated CPU seconds
    narrate: Narrator
    finished: Callable[[str], None]
    status: str = ""
    edge: str = ""
    code: int = 0
    done_s: float = 0.0
    failure: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    def take_done(self) -> float:
        """Estimated CPU seconds of what was finished since this was asked last."""
        done, self.done_s = self.done_s, 0.0
        return done

    def read(self, line: str) -> None:
        if line.startswith("ninja: "):
            self.other.append(line)
            self.edge = ""
        elif self.failure and not _STATUS.fullmatch(line):
            self.failure.append(line)
        elif match := _STATUS.fullmatch(line):
            self.status, self.edge = match[1], match[2]
        elif match := _FAILED.match(line):
            self.code = int(match[1])
            self.failure.append(f"{self.edge} failed:")
            self.edge = ""
        elif self.edge:
            self.narrate.note(f"{self.status} {line}")
            self.done_s += self.costs[self.edge]
            self.finished(self.edge)
            self.edge = ""
        else:
            self.other.append(line)

    def error(self, argv: Sequence[str], code: int) -> FlashAttn3Error:
        """The error for a build that failed: the unit's, whose text its program has written, else ninja's own."""
        if not self.failure:
            return CompileError(failure_text(argv, code, "\n".join(self.other)))
        # The second line is the shell command that ninja ran; the compiler's own is in the text below it.
        text = "\n".join([self.failure[0], *self.failure[2:]])
        return _ERRORS.get(self.code, CompileError)(text)
