"""The real host code of a compiled library, driven without a GPU by a stand-in CUDA runtime, on many faked devices."""

from __future__ import annotations

import itertools
import json
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from ci.build.family import Inputs
from ci.commands import common, options
from ci.plan.plan import PlannedUnit
from ci.prove.standin import document, library
from ci.prove.standin.calls import DEVICES, Device, calls, failing
from ci.prove.standin.library import Made
from ci.verify import kernels
from ci.verify.kernels import forward_bytes
from flash_attn3_sm121.arch import CAPABILITIES, Image
from tests.fakes.libraries import build
from tests.wheels import BuiltWheel

pytestmark = [pytest.mark.nvcc, pytest.mark.slow]
CSRC = Path(__file__).resolve().parents[2] / "csrc"


@pytest.fixture(scope="module")
def session() -> common.Session:
    return common.begin(options.Request(profile="smoke", archs="12.1"))


@pytest.fixture(scope="module")
def inputs(session: common.Session) -> Inputs:
    return common.gather_inputs(session)


@pytest.fixture(scope="module")
def made(
    session: common.Session,
    inputs: Inputs,
    smoke_wheel: BuiltWheel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Made:
    """The objects of the smoke wheel, linked with the stand-in."""
    (family,) = session.plan.families
    return library.make(common.builder(session, inputs), family, output=tmp_path_factory.mktemp("standin"))


@pytest.fixture(scope="module")
def fat(
    session: common.Session,
    inputs: Inputs,
    smoke_wheel: BuiltWheel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Made:
    """The same kernels behind a gate that lets every device of the family in; only the host file is compiled anew."""
    (family,) = session.plan.families
    names = ",".join(row.target for row in CAPABILITIES.values() if row.family is family.family)

    def opened(planned: PlannedUnit) -> PlannedUnit:
        flags = (f"-DFA3_IMAGES={names}" if flag.startswith("-DFA3_IMAGES=") else flag for flag in planned.flags)
        return replace(planned, flags=tuple(flags))

    units = tuple(opened(planned) for planned in family.units)
    builder = common.builder(session, inputs)
    return library.make(builder, replace(family, units=units), output=tmp_path_factory.mktemp("fat"))


def served(session: common.Session, device: Device) -> bool:
    (family,) = session.plan.families
    return any(Image.parse(name).runs_on(device.major, device.minor) for name in (*family.images, *family.ptx))


@pytest.fixture(scope="module")
def answers(session: common.Session, made: Made) -> tuple[library.Answer, ...]:
    """What every call launches on a GB10."""
    (family,) = session.plan.families
    return made.ask(DEVICES["GB10"], list(calls(family.selection)))


def test_a_wheel_says_that_its_kernels_were_executed(smoke_wheel: BuiltWheel) -> None:
    """By the record of the full profile, though the file of these four kernels is none of that profile's."""
    with zipfile.ZipFile(smoke_wheel.path) as archive:
        found = json.loads(archive.read("flash_attn3_sm121/lib/executed.json"))
    assert (found["attention"], found["wrong"], found["record"]) == (4, 0, "executed-full.json")


def test_every_call_launches_what_fits(made: Made, answers: tuple[library.Answer, ...]) -> None:
    assert len(answers) >= 50
    for answer in answers:
        assert answer.error is None, f"{answer.call.name}: {answer.error}"
        assert answer.launches, answer.call.name
        for launch in answer.launches:
            assert launch.status == 0, f"{answer.call.name}: {launch}"
            assert launch.smem <= DEVICES["GB10"].smem, f"{answer.call.name}: {launch}"
            assert kernels.kind(launch.kernel) != "other", launch.kernel
    usage = [item for report in made.reports for item in report.usage]
    assert document.unreached(usage, answers) == (), "kernels that no call launches"


@pytest.mark.parametrize("name", ["A10", "L40S", "RTX 5090"])
def test_every_device_of_the_family_is_served_within_its_limit(session: common.Session, fat: Made, name: str) -> None:
    (family,) = session.plan.families
    for answer in fat.ask(DEVICES[name], list(calls(family.selection))):
        assert answer.error is None, f"{answer.call.name}: {answer.error}"
        assert answer.launches, answer.call.name
        for launch in answer.launches:
            assert launch.status == 0 and launch.smem <= DEVICES[name].smem, f"{answer.call.name}: {launch}"


@pytest.mark.parametrize("name", ["A100", "H100", "B200"])
def test_devices_of_other_families_are_not_let_in(session: common.Session, fat: Made, name: str) -> None:
    (family,) = session.plan.families
    for answer in fat.ask(DEVICES[name], list(itertools.islice(calls(family.selection), 5))):
        assert answer.launches == () and answer.error is not None and "cannot run on" in answer.error


def test_shared_memory_is_what_the_arithmetic_says(answers: tuple[library.Answer, ...]) -> None:
    checked = set()
    for answer in answers:
        for launch in answer.launches:
            tile, variant = kernels.tile(launch.kernel), kernels.variant(launch.kernel)
            if tile is None or variant is None or kernels.kind(launch.kernel) != "forward":
                continue
            assert tile.warps == launch.block[0] // 32
            assert launch.smem == forward_bytes(tile), str(variant)
            checked.add(variant)
    assert len(checked) == 4


@pytest.mark.parametrize("device", [device for name, device in DEVICES.items() if name != "GB10"], ids=lambda d: d.name)
def test_a_foreign_device_gets_an_exception_and_no_launch(session: common.Session, made: Made, device: Device) -> None:
    """The smoke library holds code for 12.1 alone."""
    (family,) = session.plan.families
    assert not served(session, device)
    for answer in made.ask(device, list(itertools.islice(calls(family.selection), 0, None, 7))):
        assert answer.launches == ()
        assert answer.error is not None
        assert f"cannot run on stand-in ({device.major}.{device.minor}): it holds code for" in answer.error


def test_too_little_shared_memory_is_refused(session: common.Session, made: Made) -> None:
    (family,) = session.plan.families
    small = Device(name="small", major=12, minor=1, sms=48, l2=24 << 20, smem=65536)
    (answer,) = made.ask(small, [next(calls(family.selection))])
    assert answer.launches == () and answer.error is not None
    assert "101376 bytes of shared memory a block, the device has 65536" in answer.error


@pytest.mark.parametrize("function", ["cudaLaunchKernelExC", "cudaGetDevice", "cudaGetDeviceProperties"])
def test_a_cuda_error_becomes_an_exception_and_the_process_goes_on(
    session: common.Session, made: Made, function: str
) -> None:
    (family,) = session.plan.families
    good = failing(family.selection, "")
    first, second = made.ask(DEVICES["GB10"], [failing(family.selection, function), good])
    assert first.error is not None and "an error of the stand-in runtime" in first.error
    assert str(CSRC.parent) not in first.error
    assert second.error is None and second.launches


def test_the_number_of_sms_and_the_margin_shape_the_grid(session: common.Session, made: Made) -> None:
    """A persistent kernel's grid follows the device's SM count, not a constant."""
    (family,) = session.plan.families
    causal = next(call for call in calls(family.selection) if "causal dense" in call.name and "q128" in call.name)
    big = {**causal.arguments}
    for name, rows in (("q", 8192), ("k", 8192), ("v", 8192)):
        shape = list(big[name]["shape"])
        shape[1] = rows
        big[name] = {**big[name], "shape": shape}
    call = library.Call(name="long", op=causal.op, arguments=big)
    grids = []
    for sms in (48, 20):
        device = Device(name="x", major=12, minor=1, sms=sms, l2=24 << 20, smem=101376)
        (answer,) = made.ask(device, [call])
        assert answer.error is None
        grids.append(answer.launches[-1].grid[0])
    assert grids == [2 * 48, 2 * 20]


def test_the_gate_knows_binary_compatibility_as_the_table_does(inputs: Inputs, tmp_path: Path) -> None:
    """The same question in C++ and in Python, for every image and device."""
    names = [f"{kind}_{row.number}{variant}" for row in CAPABILITIES.values() for kind in ("sm", "compute")
             for variant in ("", "a", "f")]  # fmt: skip
    devices = [(row.major, row.minor) for row in CAPABILITIES.values()]
    lines = [
        f'std::printf("%d\\n", fa3::image_runs_on("{name}", {major}, {minor}));'
        for name, (major, minor) in itertools.product(names, devices)
    ]
    held = build("sm8x", "sm_86", "sm_120f", "sm_121", ptx=("compute_80", "compute_89"))
    lines += [f'std::printf("%d\\n", fa3::code_for({major}, {minor}));' for major, minor in devices]
    body = "\n".join(lines)
    (tmp_path / "gate.cpp").write_text(f'#include <cstdio>\n#include "fa3_gate.h"\nint main() {{\n{body}\n}}\n')
    includes = [word for folder in inputs.toolchain.include_dirs for word in ("-isystem", str(folder))]
    defines = ["-DFA3_ARCH=86", "-DFA3_SMEM_LIMIT=101376", "-DFA3_NAMESPACE=x"]
    defines.append(f"-DFA3_IMAGES={','.join((*held.images, *held.ptx))}")
    argv = [inputs.toolchain.cxx, "-std=c++17", f"-I{CSRC}", *includes, *defines, "gate.cpp", "-o", "gate"]
    subprocess.run(argv, cwd=tmp_path, check=True)
    said = subprocess.run([str(tmp_path / "gate")], capture_output=True, text=True, check=True).stdout.split()
    expected = [
        str(int(Image.parse(name).runs_on(major, minor))) for name, (major, minor) in itertools.product(names, devices)
    ]
    expected += [str(Image.parse(code).number) for device in devices if (code := held.code_for(*device))]
    assert said == expected
