"""One child process: started in a session of its own, watched, and killed with all it started when its time is up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.1
TAIL_CHARACTERS = 4000


@dataclass(frozen=True, kw_only=True)
class Ended:
    """`code` is negative for a signal, as subprocess has it; `killed` says why we ended it, if we did."""

    code: int
    seconds: float
    stdout: str
    tail: str
    killed: str | None = None

    @property
    def how(self) -> str:
        if self.killed is not None:
            return self.killed
        if self.code < 0:
            return f"ended by {signal.Signals(-self.code).name}"
        return f"exit code {self.code}"


def _stop(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended just now
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def run_watched(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    limit_s: float,
    log: Path,
    stalled: Callable[[float], str | None] = lambda _: None,
) -> Ended:
    """Run a command to its end.

    Args:
        limit_s: it is killed after so many seconds.
        log: gets its stderr; its stdout is written beside, as `.stdout`.
        stalled: called with the time every 0.1 s; a text is the reason to kill the command.
    """
    begun = time.monotonic()
    killed: str | None = None
    with log.with_suffix(".stdout").open("wb") as out, log.open("ab") as err:
        start = err.tell()
        try:
            child = subprocess.Popen(
                argv, cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
        except OSError as error:
            return Ended(code=127, seconds=0.0, stdout="", tail=f"cannot run {argv[0]}: {error.strerror}")
        try:
            while child.poll() is None:
                now = time.monotonic()
                killed = f"stopped after {limit_s:.0f} s" if now - begun > limit_s else stalled(now)
                if killed is not None:
                    break
                time.sleep(POLL_S)
        finally:
            _stop(child)  # also what it left behind in its session
    text = log.read_bytes()[start:].decode(errors="replace")
    stdout = log.with_suffix(".stdout").read_text(encoding="utf-8", errors="replace")
    return Ended(
        code=child.returncode,
        seconds=time.monotonic() - begun,
        stdout=stdout,
        tail=(text.strip() or stdout.strip())[-TAIL_CHARACTERS:],
        killed=killed,
    )
