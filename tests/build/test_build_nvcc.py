"""The real compiler: a smoke wheel that passes and loads, failures that are shown, empty kernels that are named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ci.build.family import Builder, Inputs
from ci.cache.folders import cache_root
from ci.commands import common, options
from ci.commands.common import Session
from ci.plan.plan import PlannedUnit
from ci.verify import kernels, reading
from ci.verify.checks import Check
from ci.verify.libraryrules import kernel_checks
from flash_attn3_sm121.call.schemas import PUBLIC, differences
from flash_attn3_sm121.console import Narrator
from flash_attn3_sm121.errors import CompileError, VerifyError
from tests.fakes.doctored import FACTS
from tests.wheels import ROOT, BuiltWheel, build

pytestmark = [pytest.mark.nvcc, pytest.mark.slow]


def verify(*wheels: Path, option: str = "--quiet") -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "ci", "verify", option, *map(str, wheels)]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_wheel_passes_and_carries_its_verdict(smoke_wheel: BuiltWheel) -> None:
    done = verify(smoke_wheel.path, option="--json")
    assert done.returncode == 0, done.stdout + done.stderr
    made_anew = json.loads(done.stdout)
    with zipfile.ZipFile(smoke_wheel.path) as archive:
        shipped = json.loads(archive.read("flash_attn3_sm121/lib/verify.json"))
        story = json.loads(archive.read("flash_attn3_sm121/lib/provenance.json"))
    assert shipped["verdict"] == made_anew["verdict"] == "pass" and shipped["libraries"] == made_anew["libraries"]
    (library,) = shipped["libraries"].values()
    assert "aoti_torch_get_dim" in library["undefined"] and "libtorch_cpu.so" in library["needed"]
    assert differences(story["op_schemas"]) == [] and story["identity"]["profile"] == "smoke"
    units = [unit for family in story["families"].values() for unit in family["units"]]
    assert all(bool(unit["ptx_sha256"]) == (unit["name"] != "api") for unit in units)


def test_it_loads_on_a_cpu_only_torch(smoke_wheel: BuiltWheel, tmp_path: Path) -> None:
    """In a fresh process: ops registered with upstream's schemas, no CUDA symbol asked for at load."""
    with zipfile.ZipFile(smoke_wheel.path) as archive:
        archive.extractall(tmp_path)
    code = (
        "import json, sys, torch\n"
        "torch.ops.load_library(sys.argv[1])\n"
        "ops = torch.ops.flash_attn3_sm8x\n"
        f"names = {sorted(PUBLIC)!r}\n"
        "print(json.dumps({n: str(getattr(ops, n).default._schema) for n in names}))\n"
    )
    library = tmp_path / "flash_attn3_sm121" / "lib" / "flash_attn3_sm8x.so"
    done = subprocess.run([sys.executable, "-c", code, str(library)], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert {name: text.partition("(")[0] for name, text in said.items()} == {
        name: f"flash_attn3_sm8x::{name}" for name in PUBLIC
    }


def test_nothing_is_compiled_a_second_time(smoke_wheel: BuiltWheel, tmp_path: Path) -> None:
    again = build("smoke", tmp_path)
    assert again.sha256 == smoke_wheel.sha256 and "3 in the cache, 0 to compile" in again.log
    assert "cuobjdump" not in again.log, "machine code that was read once is not read again"


def test_pip_builds_the_same_wheel(smoke_wheel: BuiltWheel, tmp_path: Path) -> None:
    """`pip wheel .` with the choice in the environment: the same bytes as the command line's."""
    env = {**os.environ, "FLASH_ATTN3_PROFILE": "smoke", "TORCH_CUDA_ARCH_LIST": "12.1"}
    env.pop("FLASH_ATTN3_SKIP_CUDA", None)
    argv = [sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*argv, "-w", str(tmp_path / "w"), "."], cwd=ROOT, env=env, check=True)
    (made,) = (tmp_path / "w").iterdir()
    assert made.name == smoke_wheel.path.name and made.read_bytes() == smoke_wheel.path.read_bytes()


def changed(wheel: Path, folder: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    """A copy of the wheel with one file changed, RECORD left as it was."""
    made = folder / wheel.name
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(made, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info, change(data) if info.filename == name else data)
    return made


def test_a_doctored_wheel_is_refused(smoke_wheel: BuiltWheel, tmp_path: Path) -> None:
    facts = "flash_attn3_sm121/lib/sm8x.json"
    made = changed(smoke_wheel.path, tmp_path, facts, lambda data: data.replace(b"sm_121", b"sm_120"))
    done = verify(made)
    assert done.returncode == VerifyError.exit_code
    assert "FAIL flash_attn3_sm8x.so: machine code is what the facts say: sm_121 (expected sm_120)" in done.stdout
    assert f"FAIL wheel: RECORD: {facts}" in done.stdout


@pytest.fixture(scope="module")
def session() -> Session:
    return common.begin(options.Request(profile="smoke", archs="12.1"))


@pytest.fixture(scope="module")
def inputs(session: Session) -> Inputs:
    return common.gather_inputs(session)


def compiled(session: Session, inputs: Inputs, unit: PlannedUnit, cache: Path) -> Path:
    """One unit's object, through the real builder, in a cache of its own."""
    builder = Builder(inputs=inputs, settings=replace(session.settings, cache=cache))
    with builder.folder() as work:
        ((made,),) = builder.compile({"sm8x": builder.keys([unit])}, work=work).values()
    return builder.store.object(made.key)


def unit_of(session: Session, kind: str) -> PlannedUnit:
    return next(item for item in session.plan.families[0].units if item.unit.kind == kind)


def test_objects_are_the_same_in_another_folder(
    session: Session, inputs: Inputs, smoke_wheel: BuiltWheel, tmp_path: Path
) -> None:
    """The unit with the most made-up names (CUB's) against the one in the wheel. All: `make reproducible`."""
    prepare = unit_of(session, "prepare")
    made = compiled(session, inputs, prepare, tmp_path / "somewhere else")
    builder = common.builder(session, inputs)
    (keyed,) = builder.keys([prepare])
    known = builder.store.find(keyed.key)
    assert known is not None and known[0] != made and known[0].read_bytes() == made.read_bytes()


def test_without_the_guard_edit_the_empty_kernels_are_named(session: Session, tmp_path: Path) -> None:
    """Upstream's guard leaves every attention kernel's body out for 12.1; the verifier says so, kernel by kernel."""
    inputs = common.gather_inputs(session, without=frozenset({"guard"}))
    made = compiled(session, inputs, unit_of(session, "fwd"), cache_root())
    tool = reading.Disassembler.of(inputs.toolchain, Narrator(quiet=True))
    code = kernels.parse_sass(tool.listing("-sass", made))
    usage = kernels.parse_usage(tool.listing("-res-usage", made))
    found = reading.join(code, usage, origin=made.name)
    bad: dict[str, Check] = {check.rule: check for check in kernel_checks(found, FACTS) if not check.ok}
    assert set(bad) == {"no empty kernel", "attention kernels use tensor cores"}
    for words in ("forward hd64 bf16 packgqa [sm_121]", "forward hd64 bf16 causal packgqa varlen [sm_121]"):
        assert words in bad["no empty kernel"].found and words in bad["attention kernels use tensor cores"].found


def test_a_failing_nvcc_is_shown(session: Session, inputs: Inputs, tmp_path: Path) -> None:
    unit = unit_of(session, "prepare")
    broken = replace(unit, unit=replace(unit.unit, text='#include "flash.h"\n#error this tile does not fit\n'))
    with pytest.raises(CompileError) as caught:
        compiled(session, inputs, broken, tmp_path)
    assert "this tile does not fit" in str(caught.value) and "nvcc" in str(caught.value)
    assert not list((tmp_path / "work").rglob("*.o")) and not list((tmp_path / "objects").rglob("unit.o"))


def test_a_source_with_one_byte_changed_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    checkout = tmp_path / "flash-attention"
    shutil.copytree(inputs.tree.hopper, checkout / "hopper")
    shutil.copytree(inputs.tree.cutlass_include, checkout / "csrc" / "cutlass" / "include")
    spoilt = checkout / "hopper" / "softmax.h"
    spoilt.chmod(0o644)
    spoilt.write_bytes(spoilt.read_bytes() + b" ")
    argv = [sys.executable, "-m", "ci", "wheel", "--profile", "smoke", "--archs", "12.1", "--source", str(checkout)]
    env = {**os.environ, "FLASH_ATTN3_HUB": str(tmp_path / "hub")}
    done = subprocess.run(
        [*argv, "--output", str(tmp_path / "w")], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 10 and "softmax.h" in done.stderr and not (tmp_path / "w").exists()
