"""`ci measure` as it is run, with scripts for compilers: what it compiles, what it keeps, how it goes on."""

from __future__ import annotations

import argparse
import hashlib
import json
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ci.build.family import Builder
from ci.cache.objects import ObjectReport
from ci.commands import common
from ci.commands import measure as command
from ci.plan import archs
from ci.plan.plan import plan_family
from ci.plan.profiles import find, select
from ci.settings import Settings
from ci.toolchain import Toolchain
from flash_attn3_sm121.arch import Family
from flash_attn3_sm121.console import Narrator
from flash_attn3_sm121.errors import CompileError, UsageError

# Notes the file that it is to compile, and writes the object named after -o, as nvcc would.
NVCC = """
for word in "$@"; do case $word in -*) ;; *.cu) echo "${word##*/}" >> COMPILED; file=$word;; esac; done
case $file in *BROKEN*) echo "no such tile" >&2; exit 7;; esac
while [ "$1" != -o ]; do shift; done; echo object > "$2"
"""


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Inputs with a compiler of ours, which the command is given in place of fetched ones."""
    for folder in ("hopper", "include", "edited"):
        (tmp_path / folder).mkdir()
    for name in ("flash_fwd_combine.cu", "flash_prepare_scheduler.cu"):
        (tmp_path / "hopper" / name).touch()
    nvcc = tmp_path / "nvcc"
    tools = Toolchain(
        host="x86_64",
        target="x86_64",
        root=tmp_path,
        nvcc=nvcc,
        cuobjdump=nvcc,
        include_dirs=(),
        cudart_dir=tmp_path,
        cxx="g++",
        cxx_version="12",
        version=(13, 0),
        origin="test",
        fingerprint="test",
    )
    found = SimpleNamespace(
        tree=SimpleNamespace(
            lock=SimpleNamespace(short="0000000"), hopper=tmp_path / "hopper", cutlass_include=tmp_path / "include"
        ),
        edited=SimpleNamespace(folder=tmp_path / "edited"),
        toolchain=tools,
        torch_headers=tmp_path / "include",
        torch_headers_id="test",
    )
    monkeypatch.setenv("FA3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(common, "gather_inputs", lambda session: found)
    return found


def compiler(tmp_path: Path, *, broken: str = "nothing") -> None:
    path = tmp_path / "nvcc"
    path.write_text("#!/bin/sh" + NVCC.replace("COMPILED", str(tmp_path / "compiled")).replace("BROKEN", broken))
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


def run(tmp_path: Path, *words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    command.configure_measure(parser)
    output = tmp_path / "build.json"
    args = parser.parse_args([*words, "--archs", "12.1", "--jobs", "1", "--output", str(output)])
    assert command.do_measure(args) == 0
    document: dict[str, Any] = json.loads(output.read_text())
    return document


def compiled(tmp_path: Path) -> list[str]:
    noted = tmp_path / "compiled"
    lines = noted.read_text().split() if noted.exists() else []
    noted.unlink(missing_ok=True)
    return lines


BOTH = ("--only", "combine", "--only", "prepare")


@pytest.mark.usefixtures("inputs")
def test_a_stopped_measurement_goes_on_where_it_was(tmp_path: Path) -> None:
    compiler(tmp_path, broken="flash_prepare")
    with pytest.raises(CompileError, match="no such tile"):
        run(tmp_path, *BOTH)
    assert compiled(tmp_path) == ["combine.cu", "prepare.cu", "flash_fwd_combine.cu", "flash_prepare_scheduler.cu"]
    compiler(tmp_path)
    document = run(tmp_path, *BOTH, "--resume")
    assert compiled(tmp_path) == ["flash_prepare_scheduler.cu"]
    assert (document["groups_measured"], document["upstream_files_measured"]) == (2, 2)
    assert document["ours_from"] == "compiled for this measurement" and document["whole"] is None
    assert sorted(path.name for path in tmp_path.glob("*build.json*")) == ["build.json"]


def test_built_takes_our_side_from_what_the_build_has_cost(tmp_path: Path, inputs: SimpleNamespace) -> None:
    compiler(tmp_path)
    with pytest.raises(UsageError, match="--built: 2 of 2 units are not in the object cache: combine, prepare"):
        run(tmp_path, *BOTH, "--built")
    assert compiled(tmp_path) == []
    settings = Settings(cache=tmp_path / "cache", narrate=Narrator(quiet=True), cores=1, memory_gb=64)
    builder = Builder(inputs=inputs, settings=settings)  # type: ignore[arg-type]
    for name, cpu_s in (("combine", 30.0), ("prepare", 10.0)):
        _store(tmp_path, builder, name=name, cpu_s=cpu_s)
    document = run(tmp_path, *BOTH, "--built")
    assert compiled(tmp_path) == ["flash_fwd_combine.cu", "flash_prepare_scheduler.cu"]
    assert document["ours_from"] == "the build that made them"
    assert {row["group"]: row["ours_cpu_s"] for row in document["results"]} == {"combine": 30.0, "prepare": 10.0}
    # Gone on with, on a machine where nothing is built: our side stays what it was, and is called so.
    again = run(tmp_path, *BOTH, "--resume")
    assert compiled(tmp_path) == [] and again["ours_from"] == document["ours_from"]
    assert again["results"] == document["results"]


def _store(tmp_path: Path, builder: Builder, *, name: str, cpu_s: float) -> None:
    """Put an object with its report into the store, as a build does."""
    plan = plan_family(select(find("full"), Family.SM8X), archs.parse("12.1", cuda=(13, 0)))
    (keyed,) = builder.keys([item for item in plan.units if item.unit.name == name])
    made = tmp_path / f"{name}.o"
    made.write_bytes(b"object")
    report = ObjectReport(
        unit=name,
        key=keyed.key,
        sha256=hashlib.sha256(b"object").hexdigest(),
        size=6,
        cpu_s=cpu_s,
        wall_s=1,
        rss_gb=1,
        usage=(),
    )
    builder.store.put(report, made=made, log="")
