"""The pinned CUDA version is raised by one command; what that does to kernels is shown side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pytest

from ci.__main__ import main
from ci.cache.objects import KernelUsage, ObjectReport
from ci.commands.compare import compared
from ci.index import Wanted
from ci.toolchain.pins import FILE
from ci.toolchain.raising import raised
from flash_attn3_sm121.errors import ToolchainError, UsageError

TAGS = ("manylinux_2_17_x86_64", "manylinux2014_aarch64.manylinux_2_17_aarch64", "win_amd64")
COMPILER = ("13.0.88", "13.4.92", "13.5.37", "13.6.1rc1")
OFFERED = {
    "nvidia-cuda-nvcc": COMPILER,
    "nvidia-nvvm": COMPILER,
    "nvidia-cuda-crt": COMPILER,
    "nvidia-cuda-runtime": ("13.0.96", "13.5.30", "13.5.37"),
    "nvidia-cuda-cccl": ("13.0.85", "13.3.5.0.6", "13.7.0"),
    "nvidia-cuda-cuobjdump": ("13.5.37", "13.7.2"),
    "nvidia-cuda-nvdisasm": ("13.5.37", "13.7.2"),
}


def offers(project: str) -> Sequence[Wanted]:
    stem = project.replace("-", "_")
    names = [f"{stem}-{version}-py3-none-{tag}.whl" for version in OFFERED[project] for tag in TAGS]
    if project == "nvidia-nvvm":
        names = [name for name in names if not ("13.4.92" in name and "aarch64" in name)]
    return [Wanted(project=project, filename=name, sha256="0" * 64) for name in names]


@pytest.mark.parametrize("asked", [None, "13.5"])
def test_every_package_follows_the_compiler(asked: str | None) -> None:
    made = json.loads(raised(asked, offers))
    assert made["cuda"] == "13.5"
    assert {row["project"]: row["version"] for row in made["packages"]} == {
        "nvidia-cuda-nvcc": "13.5.37",
        "nvidia-nvvm": "13.5.37",
        "nvidia-cuda-crt": "13.5.37",
        "nvidia-cuda-runtime": "13.5.37",
        "nvidia-cuda-cccl": "13.3.5.0.6",
        "nvidia-cuda-cuobjdump": "13.7.2",
        "nvidia-cuda-nvdisasm": "13.7.2",
    }
    wheels = made["packages"][0]["wheels"]
    assert [wheels[machine]["filename"].endswith(f"{machine}.whl") for machine in ("aarch64", "x86_64")] == [True, True]
    before = json.loads(FILE.read_text(encoding="utf-8"))
    assert {**made, "cuda": 0, "packages": 0} == {**before, "cuda": 0, "packages": 0}


@pytest.mark.parametrize("asked", ["13.4", "13.6", "12.9"], ids=["not for both machines", "not released", "not there"])
def test_a_compiler_that_the_index_lacks_is_refused_with_those_that_it_has(asked: str) -> None:
    with pytest.raises(ToolchainError, match=f"the index has no CUDA {re.escape(asked)}: ") as caught:
        raised(asked, offers)
    assert "it has these: 13.0, 13.5" in str(caught.value)


def report(*spills: int, cpu_s: float, size: int, ptx: str = "") -> ObjectReport:
    usage = tuple(
        KernelUsage(
            kernel=f"k{i}", image="sm_121", registers=200 + i, stack=0, spill_stores=n, spill_loads=0, static_smem=0
        )
        for i, n in enumerate(spills)
    )
    return ObjectReport(
        unit="x",
        key="k",
        sha256="s",
        size=size,
        cpu_s=cpu_s,
        wall_s=cpu_s,
        rss_gb=1.0,
        usage=usage,
        ptx={"x.ptx": ptx} if ptx else {},
    )


def test_both_versions_stand_side_by_side() -> None:
    before = {"sm8x a": report(0, 0, cpu_s=10, size=1024, ptx="1"), "sm8x b": report(cpu_s=5, size=1024)}
    after = {"sm8x a": report(0, 16, 8, cpu_s=12, size=2048, ptx="2"), "sm8x b": report(cpu_s=5, size=1024)}
    rows = str(compared(before, after, names=("13.0", "13.5"))).splitlines()
    assert rows[0].split("  ")[0] == "unit" and "CPU s 13.0 -> 13.5" in rows[0]
    cells = [re.split(r"  +", row) for row in rows]
    assert cells[1] == ["sm8x a", "10 -> 12", "1 KiB -> 2 KiB", "2 -> 3", "201 -> 202", "0 -> 2", "0 -> 24", "differs"]
    assert cells[2] == ["sm8x b", "5", "1 KiB", "0", "0", "0", "0", "none"]
    assert cells[3] == ["all", "15 -> 17", "2 KiB -> 3 KiB", "2 -> 3", "201 -> 202", "0 -> 2", "0 -> 24", "differs"]
    again = str(compared({"sm8x a": before["sm8x a"]}, {"sm8x a": before["sm8x a"]}, names=("a", "b"))).splitlines()
    assert [row.endswith("the same") for row in again] == [False, True, True]


def test_a_pin_is_not_raised_by_comparing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--to-pin", "head", "--write"]) == UsageError.exit_code
    assert "--write is for --to-cuda" in capsys.readouterr().err
