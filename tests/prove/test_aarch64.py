"""The aarch64 wheel, cross-compiled here, on an emulated aarch64 machine: real pip, real import, real `kernels`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ci.prove.emulated import root as emulated
from ci.prove.emulated.cli import problems
from ci.settings import Settings
from ci.toolchain import resolve
from flash_attn3_sm121.console import Narrator
from flash_attn3_sm121.errors import ToolchainError
from tests.wheels import ROOT, BuiltWheel, build

CROSS = "aarch64-linux-gnu-g++"
needs_tools = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in (emulated.QEMU, "debootstrap", CROSS)) or os.geteuid() != 0,
    reason=f"wants {emulated.QEMU}, debootstrap, {CROSS} and root: .ci/run installs them",
)
pytestmark = [pytest.mark.emulated, pytest.mark.nvcc, pytest.mark.slow]


@pytest.fixture(scope="module")
def arm_wheel(tmp_path_factory: pytest.TempPathFactory) -> BuiltWheel:
    return build("smoke", tmp_path_factory.mktemp("arm"), "--platform", "aarch64")


def _device_code(wheel: Path, folder: Path) -> dict[str, str]:
    """Every machine-code image of the wheel's library, by name without the counter, with its sha256."""
    tools = resolve(Settings(narrate=Narrator(quiet=True)))
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        library = archive.extract("flash_attn3_sm121/lib/flash_attn3_sm8x.so", folder)
    subprocess.run([tools.cuobjdump, "-xelf", "all", library], cwd=folder, check=True, capture_output=True)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.cubin")}


@needs_tools
def test_the_machine_code_is_that_of_the_native_build(
    arm_wheel: BuiltWheel, smoke_wheel: BuiltWheel, tmp_path: Path
) -> None:
    arm = _device_code(arm_wheel.path, tmp_path / "arm")
    native = _device_code(smoke_wheel.path, tmp_path / "native")
    assert len(arm) >= 2
    assert sorted(arm.values()) == sorted(native.values())


def _ptx(wheel: Path) -> dict[str, str]:
    """The PTX of the wheel's units: the name of each file, and its sha256."""
    with zipfile.ZipFile(wheel) as archive:
        story = json.loads(archive.read("flash_attn3_sm121/lib/provenance.json"))
    units = story["families"]["sm8x"]["units"]
    return {name: sha256 for unit in units for name, sha256 in unit["ptx_sha256"].items()}


@needs_tools
def test_the_ptx_by_which_executed_kernels_are_known_is_too(arm_wheel: BuiltWheel, smoke_wheel: BuiltWheel) -> None:
    assert len(_ptx(arm_wheel.path)) >= 2
    assert _ptx(arm_wheel.path) == _ptx(smoke_wheel.path)


@needs_tools
def test_the_wheel_installs_and_works_on_aarch64(arm_wheel: BuiltWheel) -> None:
    assert arm_wheel.path.name.endswith("_aarch64.whl")
    command = [sys.executable, "-m", "ci", "emulate", str(arm_wheel.path), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout)
    assert problems(report) == []
    assert report["torch"].startswith("2.9.1")
    assert report["families"]["sm8x"]["images"] == ["sm_121"]


REPORT = {
    "machine": "aarch64",
    "families": {
        "sm8x": {"images": ["sm_121"], "ops": dict.fromkeys(("bwd", "fwd", "fwd_combine", "get_scheduler_metadata"))}
    },
    "fallback": {"causal": 1e-7},
    "get_kernel": {"function": "flash_attn3_sm121.api.interface.flash_attn_func"},
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"machine": "x86_64"}, "expected aarch64"),
        ({"families": {}}, "found none"),
        ({"families": {"sm8x": {"images": [], "ops": {"fwd": ""}}}}, "expected four ops"),
        ({"fallback": {"window": 0.3}}, "fallback window"),
        ({"fallback": {"window": float("nan")}}, "fallback window"),
        ({"get_kernel": {"function": "somebody.else"}}, "expected our module"),
    ],
)
def test_each_thing_that_can_be_wrong_is_noticed(change: dict[str, object], words: str) -> None:
    assert problems(REPORT) == []
    assert words in "\n".join(problems({**REPORT, **change}))


def test_missing_tools_are_named_with_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolchainError, match="apt-get install qemu-user-static"):
        emulated.require_tools()
