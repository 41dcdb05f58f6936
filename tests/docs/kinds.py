"""The two ways in which a documented command is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Run:
    """Run in a `Place`, in one shell with `before` and `then`; the exit code must be 0 and `says` (a regular
    expression) must be found in what all of it printed."""

    says: str
    before: tuple[str, ...] = ()
    then: tuple[str, ...] = ()
    adds: str = ""  # options behind the command that make it short; the command itself stays as the page has it
    puts: Mapping[str, str] = field(default_factory=dict)  # a placeholder of the page -> what stands there instead
    files: Mapping[str, str] = field(default_factory=dict)  # written into the clone first
    environ: Mapping[str, str] = field(default_factory=dict)
    marks: frozenset[str] = frozenset()  # network, nvcc; all of them are slow
    own_cache: bool = True  # False: this machine's content cache, for what has compilers in it


@dataclass(frozen=True, kw_only=True)
class Serve:
    """A server: started with `--port 0`, asked for /healthz, and ended with SIGTERM."""

    before: tuple[str, ...] = ()
    marks: frozenset[str] = frozenset()
