"""Running a newcomer's commands one after the other: output to a log, the last line of it now and then, exit codes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ci.console import Narrator, format_seconds
from ci.prove.fresh.inside import Mount, enclosed, script
from ci.prove.fresh.recipe import CLONE, FIRST, SECOND, UID, environment

TRY = "~/try"
SMOKE = {"PROFILE": "smoke"}
NARRATE_SECONDS = 15.0
CLOSING = re.compile(r"=+ (\d+ .* in [0-9.]+s.*?) =+$")
SKIPPED = re.compile(r"^SKIPPED \[\d+\] .*")
FAILED = re.compile(r"^(?:FAILED|ERROR) tests/\S+")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of the new user, and why it is run."""

    about: str
    command: str
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a step ended. `closing` is the last line that it wrote, pytest's own where it was pytest."""

    about: str
    command: str
    environ: Mapping[str, str]
    code: int
    seconds: float
    closing: str
    skipped: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


def plan(commands: tuple[str, str], *, only: str | None) -> list[Step]:
    """README's commands, and behind the first the use of what it made."""
    wheel, test = commands
    steps = [
        Step(about="README's first command, smoke profile", command=wheel, environ=SMOKE),
        Step(about="the wheel is there, once", command="test $(ls wheels/*.whl | wc -l) = 1 && sha256sum wheels/*.whl"),
        Step(
            about="it installs in a new environment (torch is left out: gigabytes that prove nothing here)",
            command=f"python3 -m venv {TRY} && {TRY}/bin/pip install --quiet --no-deps wheels/flash_attn3_sm121-*.whl",
        ),
        Step(about="its command answers", command=f"cd / && {TRY}/bin/flash-attn3 --version"),
    ]
    last = Step(about="README's second command", command=test)
    return {"wheel": steps, "test": [last], None: [*steps, last]}[only]


@dataclass(kw_only=True)
class Newcomer:
    """Runs steps in a root, as the new user, in the clone."""

    root: Path
    mounts: Sequence[Mount]
    environ: Mapping[str, str]
    log: TextIO
    narrate: Narrator

    def run(self, step: Step) -> Done:
        prefix = "".join(f"{name}={value} " for name, value in step.environ.items())
        self.narrate.note(f"newcomer$ {prefix}{step.command}")
        self.log.write(f"\nnewcomer$ {prefix}{step.command}\n")
        text = script(
            self.root,
            self.mounts,
            step.command,
            user=UID,
            folder=CLONE,
            environ=environment(self.environ, step.environ),
        )
        begun = time.monotonic()
        # A session of its own: Ctrl-C comes to us alone, and we end all of it.
        with subprocess.Popen(
            enclosed(text),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as child:
            try:
                closing, skipped, wrong = self._follow(child, begun=begun)
                code = child.wait()
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
        seconds = round(time.monotonic() - begun, 1)
        self.narrate.note(f"  exit code {code} after {format_seconds(seconds)}: {closing}")
        return Done(
            about=step.about,
            command=step.command,
            environ=dict(step.environ),
            code=code,
            seconds=seconds,
            closing=closing,
            skipped=tuple(skipped),
            failed=tuple(wrong),
        )

    def _follow(self, child: subprocess.Popen[str], *, begun: float) -> tuple[str, list[str], list[str]]:
        """Copy the output into the log; return the closing line, and pytest's lists of what was skipped and failed."""
        assert child.stdout is not None
        last, pytests, told = "", "", begun
        skipped: list[str] = []
        wrong: list[str] = []
        for line in child.stdout:
            self.log.write(line)
            self.log.flush()
            stripped = line.rstrip()
            last = stripped or last
            if found := CLOSING.match(stripped):
                pytests = found[1]
            if SKIPPED.match(stripped):
                skipped.append(stripped)
            if found := FAILED.match(stripped):
                wrong.append(found[0])
            if time.monotonic() - told >= NARRATE_SECONDS:
                told = time.monotonic()
                self.narrate.note(f"  {format_seconds(told - begun)}  {last[:110]}")
        return pytests or last, skipped, wrong


def failed(steps: Sequence[Done]) -> list[Done]:
    return [step for step in steps if step.code != 0]


def wheel_of(steps: Sequence[Done]) -> dict[str, str] | None:
    """Name and sha256 of the wheel, from what `sha256sum` said."""
    for step in steps:
        if "sha256sum" in step.command and step.code == 0:
            digest, _, name = step.closing.partition("  ")
            return {"name": Path(name).name, "sha256": digest}
    return None


def document(*, date: str, commit: str, suite: str, machine: str, steps: Sequence[Done]) -> dict[str, Any]:
    """The result for programs: no path and no name of this machine in it."""
    return {
        "date": date,
        "commit": commit,
        "suite": suite,
        "machine": machine,
        "passed": not failed(steps),
        "wheel": wheel_of(steps),
        "commands": [asdict(step) | {"skipped": list(step.skipped), "failed": list(step.failed)} for step in steps],
    }


def in_order(done: Sequence[Done]) -> str:
    """The summary: every command, its exit code and time."""
    rows = [f"{'exit':>4}  {'time':>9}  command"]
    for step in done:
        prefix = "".join(f"{name}={value} " for name, value in step.environ.items())
        rows.append(f"{step.code:>4}  {format_seconds(step.seconds):>9}  {prefix}{step.command}")
        if step.command.startswith((FIRST, SECOND)):
            rows.append(f"{'':17}{step.closing}")
    return "\n".join(rows)
