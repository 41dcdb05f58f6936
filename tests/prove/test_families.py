"""Every family for real: compiled apart to artifacts, assembled to slim wheels and a fat one, and each library's host
code driven through the stand-in runtime for the devices that it serves, and for those that it must not.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ci.commands import common, options
from ci.plan.plan import FamilyPlan, PlannedUnit
from ci.prove.standin import document, library
from ci.prove.standin.calls import DEVICES, Call, calls, failing
from ci.prove.standin.library import Made
from ci.verify import kernels
from flash_attn3_sm121.arch import CAPABILITIES
from flash_attn3_sm121.call.facts import DeviceFacts
from flash_attn3_sm121.dispatch.decide import NativeState, pick_build
from flash_attn3_sm121.native import library as native
from tests.wheels import ROOT, build

pytestmark = [pytest.mark.nvcc, pytest.mark.slow]
# One capability a family: what the others of it run is the same code behind another gate.
ARCHS = "9.0 10.0 12.1"
IMAGES = {"sm80": "sm_100", "sm8x": "sm_121", "sm90": "sm_90a"}
SERVED = {"A100": "sm80", "B200": "sm80", "H100": "sm90"}  # sm8x: tests/prove/test_kernels.py


def ci(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "ci", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def session() -> common.Session:
    return common.begin(options.Request(profile="smoke", archs=ARCHS))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of all families from one command, which compiles their units in one queue."""
    return build("smoke", tmp_path_factory.mktemp("together"), "--archs", ARCHS).path


@pytest.fixture(scope="module")
def artifacts(together: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> artifact, each from a command of its own, as machines apart make them; objects come from the cache."""
    found = {}
    for family in IMAGES:
        output = tmp_path_factory.mktemp(f"artifacts-{family}")
        ci("build", "--profile", "smoke", "--archs", ARCHS, "--family", family, "--output", str(output))
        (found[family],) = output.iterdir()
    return found


def assembled(folders: list[Path], output: Path) -> Path:
    ci("assemble", *map(str, folders), "--output", str(output), "--no-publish")
    (wheel,) = output.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def fat(artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return assembled(list(artifacts.values()), tmp_path_factory.mktemp("fat"))


@pytest.mark.parametrize("family", IMAGES)
def test_a_slim_wheel_of_each_family_passes(artifacts: dict[str, Path], family: str, tmp_path: Path) -> None:
    wheel = assembled([artifacts[family]], tmp_path)
    said = json.loads(ci("verify", "--json", str(wheel)))
    assert said["verdict"] == "pass" and list(said["libraries"]) == [f"flash_attn3_{family}.so"]


def test_the_fat_wheel_passes_and_holds_them_all(fat: Path) -> None:
    said = json.loads(ci("verify", "--json", str(fat)))
    assert said["verdict"] == "pass"
    images = {
        name: {kernel["image"] for kernel in found["kernels"] if kernel["kind"] == "forward"}
        for name, found in said["libraries"].items()
    }
    assert images == {f"flash_attn3_{family}.so": {image} for family, image in IMAGES.items()}


def test_one_machine_makes_the_same_wheel_as_machines_apart(fat: Path, together: Path) -> None:
    assert together.name == fat.name and together.read_bytes() == fat.read_bytes()


def test_one_process_loads_all_of_them_and_each_device_gets_its_own(fat: Path, tmp_path: Path) -> None:
    """On a torch without CUDA: three libraries, three namespaces, nothing shadowed; and the choice for each device."""
    with zipfile.ZipFile(fat) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "flash_attn3_sm121" / "lib"
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "for path in sorted(Path(sys.argv[1]).glob('*.so')):\n"
        "    torch.ops.load_library(str(path))\n"
        f"print(*(getattr(torch.ops, 'flash_attn3_' + name).fwd.default.name() for name in {list(IMAGES)!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"flash_attn3_{family}::fwd" for family in IMAGES]
    builds = tuple(found.facts for found in native.find(folder))
    chosen = {}
    for name, row in CAPABILITIES.items():
        device = DeviceFacts(
            type="cuda", name=row.devices, capability=(row.major, row.minor), smem_limit=row.smem_limit
        )
        chosen[name] = pick_build(device, NativeState(builds=builds))
    served = {name: found.family for name, found in chosen.items() if not isinstance(found, str)}
    assert served == {"9.0": "sm90", "10.0": "sm80", "10.3": "sm80", "12.1": "sm8x"}


def family_of(session: common.Session, name: str) -> FamilyPlan:
    return next(family for family in session.plan.families if str(family.family) == name)


@pytest.fixture(scope="module")
def stand_in(
    session: common.Session, artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Made]:
    """A family's library with the stand-in runtime, its gate open to all devices of the family; made once."""
    builder = common.builder(session, common.gather_inputs(session))
    made: dict[str, Made] = {}

    def make(name: str) -> Made:
        family = family_of(session, name)
        names = ",".join(row.target for row in CAPABILITIES.values() if row.family is family.family)

        def opened(planned: PlannedUnit) -> PlannedUnit:
            flags = (f"-DFA3_IMAGES={names}" if flag.startswith("-DFA3_IMAGES=") else flag for flag in planned.flags)
            return replace(planned, flags=tuple(flags))

        if name not in made:
            units = tuple(opened(planned) for planned in family.units)
            output = tmp_path_factory.mktemp(f"standin-{name}")
            made[name] = library.make(builder, replace(family, units=units), output=output)
        return made[name]

    return make


@pytest.mark.parametrize("name", SERVED)
def test_every_call_launches_what_fits(session: common.Session, stand_in: Callable[[str], Made], name: str) -> None:
    made = stand_in(SERVED[name])
    chosen = list(calls(family_of(session, SERVED[name]).selection))
    answers = made.ask(DEVICES[name], chosen)
    assert len(answers) >= 50
    for answer in answers:
        assert answer.error is None, f"{answer.call.name}: {answer.error}"
        assert answer.launches, answer.call.name
        for launch in answer.launches:
            assert launch.status == 0 and launch.smem <= DEVICES[name].smem, f"{answer.call.name}: {launch}"
            assert kernels.kind(launch.kernel) != "other", launch.kernel
    usage = [item for report in made.reports for item in report.usage]
    assert document.unreached(usage, answers) == (), "kernels that no call launches"


@pytest.mark.parametrize(
    ("family", "name"),
    [(f, d) for f, d in itertools.product(("sm80", "sm90"), DEVICES) if SERVED.get(d) != f],
    ids="-".join,
)
def test_no_device_of_another_family_is_let_in(
    session: common.Session, stand_in: Callable[[str], Made], family: str, name: str
) -> None:
    (answer,) = stand_in(family).ask(DEVICES[name], [next(calls(family_of(session, family).selection))])
    assert answer.launches == () and answer.error is not None and "cannot run on" in answer.error


def misaligned(call: Call, tensor: str) -> Call:
    arguments: dict[str, Any] = {**call.arguments, tensor: {**call.arguments[tensor], "offset": 1}}
    return replace(call, name=f"{call.name}, {tensor} one element off", arguments=arguments)


@pytest.mark.parametrize("family", ["sm80", "sm90"])
def test_what_kernels_cannot_read_is_refused_before_a_launch(
    session: common.Session, stand_in: Callable[[str], Made], family: str
) -> None:
    """On a device it would be a misaligned address, after which the process can use the device no more."""
    device = next(name for name, serving in SERVED.items() if serving == family)
    good = failing(family_of(session, family).selection, "")
    bad = [misaligned(good, tensor) for tensor in "qkv"]
    *answers, last = stand_in(family).ask(DEVICES[device], [*bad, good])
    for answer, tensor in zip(answers, "qkv", strict=True):
        assert answer.launches == () and answer.error is not None
        assert f"{tensor} starts at no multiple of 16 bytes" in answer.error
        assert native.is_refused(RuntimeError(answer.error))
    assert last.error is None and last.launches


def test_tensors_on_two_devices_are_refused_before_a_launch(
    session: common.Session, stand_in: Callable[[str], Made]
) -> None:
    """A kernel would read another device's memory: an illegal address, or bytes that are still being written."""

    def tensors(call: Call) -> list[str]:
        return [name for name, value in call.arguments.items() if isinstance(value, dict)]

    good = max(calls(family_of(session, "sm80").selection), key=lambda call: len(tensors(call)))
    bad = [replace(good, elsewhere=name) for name in tensors(good) if name != "q"]
    assert len(bad) == 4
    *answers, last = stand_in("sm80").ask(DEVICES["A100"], [*bad, good])
    for call, answer in zip(bad, answers, strict=True):
        assert answer.launches == () and answer.error is not None, call.elsewhere
        assert f"{call.elsewhere} must be on CUDA, where the other tensors are" in answer.error
    assert last.error is None and last.launches


def test_a_descriptor_that_the_driver_refuses_is_an_exception(
    session: common.Session, stand_in: Callable[[str], Made]
) -> None:
    """CUTLASS prints and launches with an empty one."""
    selection = family_of(session, "sm90").selection
    bad = failing(selection, "cuTensorMapEncodeTiled")
    first, second = stand_in("sm90").ask(DEVICES["H100"], [bad, failing(selection, "")])
    assert first.launches == () and first.error is not None and native.is_refused(RuntimeError(first.error))
    assert "for a TMA descriptor" in first.error
    assert second.error is None and second.launches


def test_the_host_file_of_a_proxy_build_compiles() -> None:
    """12.1's kernels in code for an H100. Its plan, name, rules, hub and dispatch are tested elsewhere."""
    session = common.begin(options.Request(profile="smoke", archs="12.1", proxy="9.0"))
    builder = common.builder(session, common.gather_inputs(session))
    (host,) = [unit for unit in session.plan.families[0].units if unit.unit.kind == "api"]
    assert "-DFA3_PROXY" in host.flags and "-DFA3_IMAGES=sm_90" in host.flags
    with builder.folder() as work:
        ((made,),) = builder.compile({"sm8x": builder.keys([host])}, work=work).values()
    assert builder.store.object(made.key).is_file()
