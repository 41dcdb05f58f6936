"""The settings of a command: where things are kept, who is told, and how much of this machine may be used."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ci.cache.folders import cache_root
from flash_attn3_sm121.console import Narrator


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
