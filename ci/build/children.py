"""Running compilers: output to a file, CPU time and peak memory measured, every process of a run killable at once."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flash_attn3_sm121.errors import ToolchainError


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a child ended. `cpu_s` counts its descendants; `rss_gb` is the largest process among them."""

    code: int
    cpu_s: float
    wall_s: float
    rss_gb: float


def outcome(code: int, *, user_s: float, system_s: float, wall_s: float, maxrss_kb: int) -> Outcome:
    return Outcome(
        code=code, cpu_s=round(user_s + system_s, 2), wall_s=round(wall_s, 2), rss_gb=round(maxrss_kb / 1e6, 3)
    )


class Children:
    """The compilers of one build. Threads call `run`; `stop` kills what runs and refuses what comes after."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: set[int] = set()
        self.stopped = False

    def run(self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path) -> Outcome:
        """Run to the end, stdout and stderr into `log`. Raises ToolchainError when it cannot be started."""
        begun = time.monotonic()
        with log.open("wb") as output:
            with self._lock:
                if self.stopped:
                    return outcome(-signal.SIGTERM, user_s=0, system_s=0, wall_s=0, maxrss_kb=0)
                try:
                    # A session of its own: stopping it takes nvcc's own children along.
                    child = subprocess.Popen(
                        argv, cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                        start_new_session=True,
                    )  # fmt: skip
                except OSError as error:
                    raise ToolchainError(f"cannot run {argv[0]}: {error.strerror}") from error
                self._groups.add(child.pid)
            try:
                _, status, usage = os.wait4(child.pid, 0)
            finally:
                with self._lock:
                    self._groups.discard(child.pid)
        child.returncode = os.waitstatus_to_exitcode(status)
        return outcome(
            child.returncode,
            user_s=usage.ru_utime,
            system_s=usage.ru_stime,
            wall_s=time.monotonic() - begun,
            maxrss_kb=usage.ru_maxrss,
        )

    def stop(self) -> None:
        with self._lock:
            self.stopped = True
            for group in self._groups:
                try:
                    os.killpg(group, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # it ended just now

    def sessions(self) -> frozenset[int]:
        """Session ids of what runs now (each child leads one)."""
        with self._lock:
            return frozenset(self._groups)
