"""Cores, memory and GPUs of this machine. No other file asks the system for them; planning gets a `Machine`."""

from __future__ import annotations

import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from ci.plan.platforms import Platform
from ci.process import execute
from flash_attn3_sm121.doctor.collect import gpus


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What planning needs to know about the build machine."""

    platform: Platform
    cores: int
    memory_gb: float  # what may be used now: MemAvailable, or the control group's limit where that is lower
    gpus: tuple[str, ...]  # compute capabilities, each once


def parse_meminfo(text: str) -> float:
    """MemAvailable of /proc/meminfo in GB."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return int(match[1]) / 1e6 if match else 4.0


def cgroup_headroom_gb(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Memory that the control group still allows; None where it sets no limit."""
    limit, used = root / "memory.max", root / "memory.current"
    if not limit.is_file() or not used.is_file():
        return None
    text = limit.read_text(encoding="ascii").strip()
    return None if text == "max" else (int(text) - int(used.read_text(encoding="ascii"))) / 1e9


def memory_gb() -> float:
    """Memory that may be used now."""
    path = Path("/proc/meminfo")
    available = parse_meminfo(path.read_text(encoding="ascii")) if path.is_file() else 4.0
    headroom = cgroup_headroom_gb()
    return available if headroom is None else min(available, headroom)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def this_machine() -> Machine:
    """What this machine has."""
    return Machine(
        platform=Platform.parse(platform.machine()),
        cores=cores(),
        memory_gb=memory_gb(),
        gpus=tuple(dict.fromkeys("{}.{}".format(*gpu.capability) for gpu in gpus()[2])),
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
