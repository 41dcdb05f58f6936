"""This machine, and how much of it a command may use. No other file asks the system for cores, memory and GPUs."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ci.cache.folders import cache_root, locked, making
from ci.plan.archs import Platform
from ci.plan.costs import Concurrency, Cost, concurrency
from flash_attn3_sm121.console import Narrator
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


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a command works. No setting decides a byte of a library."""

    cache: Path = field(default_factory=cache_root)  # the content cache
    narrate: Narrator = field(default_factory=Narrator)
    offline: bool = False  # ask no network: the cache and local folders only
    cores: int = 1
    memory_gb: float = 4.0
    jobs: int | None = None  # compilers at once, as asked for; else one a core
    launcher: str | None = None  # a compiler cache in front of each compiler; part of the objects' keys

    def provide(
        self, key: str, label: str, fill: Callable[[Path], None], *, wrong: Callable[[Path], str] = lambda _: ""
    ) -> Path:
        """An entry of the content cache, made where it is not there, or not as it was made.

        Args:
            key: names it.
            label: what it is, for people.
            fill: fills a new folder with it.
            wrong: says what is wrong with the entry; nothing is, where that is empty.
        """
        entry = self.cache / key
        with locked(self.cache, key, waiting=lambda: self.narrate.note(f"waiting for another run that makes {label}")):
            if entry.is_dir():
                damage = wrong(entry)
                if not damage:
                    self.narrate.note(f"{label}: from the cache")
                    return entry
                self.narrate.note(f"{label}: damaged in the cache, fetched again: {damage}")
            with making(self.cache, key) as work:
                fill(work)
        return entry

    def at_once(self, costs: Sequence[Cost]) -> Concurrency:
        """How many compilers run at once for units of these costs."""
        return concurrency(costs, cores=self.cores, memory_gb=self.memory_gb, wanted=self.jobs)
