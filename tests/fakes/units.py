"""Units to compile, with scripts for compilers."""

from __future__ import annotations

import io
import stat
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from ci.build.family import Builder, Keyed
from ci.cache.objects import ObjectReport
from ci.plan.costs import Cost
from ci.plan.plan import PlannedUnit
from ci.plan.units import Unit
from ci.settings import Settings
from ci.toolchain import Toolchain
from flash_attn3_sm121.console import Narrator

KEY = "ab" + "0" * 62
NAME = "fwd_hd64_plain_bf16"


def unit(name: str = NAME, *flags: str, cpu_s: float = 10) -> PlannedUnit:
    made = Unit(name=name, kind="fwd", head_dim=64, kernels=4, text="// nothing\n", contents=())
    return PlannedUnit(unit=made, flags=("-O3", *flags), cost=Cost(cpu_s=cpu_s, rss_gb=1), shard=1)


def toolchain(nvcc: Path) -> Toolchain:
    return Toolchain(
        host="x86_64",
        target="x86_64",
        root=nvcc.parent,
        nvcc=nvcc,
        cuobjdump=nvcc,
        include_dirs=(),
        cudart_dir=nvcc.parent,
        cxx="g++",
        cxx_version="12",
        version=(13, 0),
        origin="test",
        fingerprint="test",
    )


def builder(tmp_path: Path, body: str, *, jobs: int = 1, stream: io.StringIO | None = None) -> Builder:
    """A builder whose compiler is a script of that body."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IEXEC)
    (tmp_path / "s").mkdir(exist_ok=True)
    inputs = SimpleNamespace(
        toolchain=toolchain(nvcc), edited=SimpleNamespace(folder=tmp_path / "s"), torch_headers=tmp_path / "s"
    )
    settings = Settings(
        cache=tmp_path / "cache", narrate=Narrator(stream=stream or io.StringIO()), cores=jobs, memory_gb=64
    )
    return Builder(inputs=inputs, settings=settings)  # type: ignore[arg-type]


def built(made: Builder, **families: Sequence[Keyed]) -> dict[str, tuple[ObjectReport, ...]]:
    with made.folder() as work:
        return made.compile(families, work=work)
