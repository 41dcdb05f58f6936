"""The one runner of outside commands: prints each before it runs; a failure quotes command, exit code and output."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flash_attn3_sm121.console import Narrator
from flash_attn3_sm121.errors import CompileError, ToolchainError

TAIL_LINES = 30


def execute(
    argv: Sequence[str | Path],
    *,
    narrate: Narrator | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout: float | None = None,
    shown: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and capture its output; the caller judges the exit code.

    Args:
        shown: whether its stdout goes to our stderr as it comes, and is not captured.
        narrate: prints the command first. None where it is no news for a user (`git rev-parse`).

    Raises:
        ToolchainError: the command cannot be started.
        subprocess.TimeoutExpired: it took longer than `timeout` seconds.
    """
    words = [str(word) for word in argv]
    if narrate is not None:
        narrate.command(words)
    try:
        return subprocess.run(
            words,
            cwd=cwd,
            env=None if env is None else dict(env),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            stdout=2 if shown else subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except OSError as error:
        raise ToolchainError(f"cannot run {words[0]}: {error.strerror}") from error


def output_of(
    argv: Sequence[str | Path],
    *,
    narrate: Narrator | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    hint: str | None = None,
) -> str:
    """The standard output of a command that must succeed.

    Raises:
        CompileError: it ended with another exit code than 0.
    """
    done = execute(argv, narrate=narrate, cwd=cwd, env=env, stdin=stdin)
    if done.returncode != 0:
        raise CompileError(failure_text(argv, done.returncode, done.stdout + done.stderr), hint=hint)
    return done.stdout


def failure_text(argv: Sequence[str | Path], code: int, output: str) -> str:
    """A failed command for people: the command as one could type it, its exit code, the end of its output."""
    tail = "\n".join(f"  | {line}" for line in output.splitlines()[-TAIL_LINES:])
    return f"$ {shlex.join(str(word) for word in argv)}\nexit code {code}; its last output:\n{tail}"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How a command ended. `cpu_s` counts its descendants; `rss_gb` is the largest process among them."""

    code: int
    cpu_s: float
    wall_s: float
    rss_gb: float


def measured(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path) -> Measured:
    """Run a command to its end, stdout and stderr into `log`, and measure what it took.

    Raises:
        ToolchainError: the command cannot be started.
    """
    begun = time.monotonic()
    with log.open("wb") as output:
        try:
            child = subprocess.Popen(
                argv, cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        except OSError as error:
            raise ToolchainError(f"cannot run {argv[0]}: {error.strerror}") from error
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return Measured(
        code=child.returncode,
        cpu_s=round(usage.ru_utime + usage.ru_stime, 2),
        wall_s=round(time.monotonic() - begun, 2),
        rss_gb=round(usage.ru_maxrss / 1e6, 3),
    )


def commit_of(root: Path) -> str:
    """The checkout's commit, `+` where tracked files differ from it; `unknown` without git or a checkout."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    head = execute([git, "-C", root, "rev-parse", "HEAD"])
    if head.returncode != 0:
        return "unknown"
    changed = execute([git, "-C", root, "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    return head.stdout.strip() + ("+" if changed else "")
