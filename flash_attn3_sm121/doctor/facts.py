"""The facts that a diagnosis is made from, as plain data. `collect` reads them; tests write them by hand."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU as the driver names it, with or without torch."""

    name: str
    capability: tuple[int, int]
    memory_mb: int | None = None


@dataclass(frozen=True, kw_only=True)
class Torch:
    """What `import torch` gave. Where `error` is set, nothing else is known."""

    version: str = ""
    cuda: str | None = None
    hip: str | None = None
    arch_list: tuple[str, ...] = ()
    devices: tuple[Gpu, ...] = ()  # the CUDA devices that it sees, in its order; nvidia-smi has an order of its own
    cuda_error: str | None = None
    error: str | None = None
    hidden_by: str | None = None  # the environment variable without which it does import


@dataclass(frozen=True, kw_only=True)
class Library:
    """A family library of this install: what its facts say, and what happened when it was loaded."""

    family: str
    images: tuple[str, ...]
    ptx: tuple[str, ...]
    dtypes: tuple[str, ...]
    head_dims: tuple[int, ...]
    backward_head_dims: tuple[int, ...]
    features: tuple[str, ...]
    profile: str
    proxy: bool
    size: int
    cuda: str  # the toolkit whose runtime is linked into it
    intact: bool  # the file's sha256 is the one its facts name
    error: str | None = None  # why it does not load
    line: str = ""  # its pin, profile and capabilities, for people
    executed: str = ""  # what ran in software before the wheel was made, in a line


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """An installed distribution that matters here."""

    name: str
    version: str
    location: str
    ours: bool = False


@dataclass(frozen=True, kw_only=True)
class Client:
    """What a client on this machine would get when it looks for FlashAttention-3."""

    name: str
    gets: str
    ours: bool
    problem: str | None = None
    fix: str | None = None


@dataclass(frozen=True, kw_only=True)
class Call:
    """A typical call and who would serve it."""

    name: str
    device: str
    decision: str  # the whole text of the decision, refusals included
    backend: str | None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """All facts about a machine."""

    python: str
    executable: str
    pip: str  # what to type for that Python's pip
    platform: str
    cpu: str
    in_venv: bool
    driver: str | None
    driver_error: str | None
    gpus: tuple[Gpu, ...]
    torch: Torch
    distributions: tuple[Distribution, ...]
    libraries: tuple[Library, ...]
    facts_errors: tuple[str, ...] = ()
    source_tree: str | None = None  # set where python imports a source tree: where its libraries come from
    clients: tuple[Client, ...] = ()
    calls: tuple[Call, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    canary: str | None = None  # "passed", "skipped: ...", "failed: ..."

    def distribution(self, name: str) -> tuple[Distribution, ...]:
        return tuple(item for item in self.distributions if item.name == name)
