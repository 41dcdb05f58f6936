"""`python -m ci gpu-test` without a GPU: what becomes of stages that fail in every way, and the whole on a CPU."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from ci.__main__ import main
from ci.prove.gpu import casework, outcomes, runner, suite
from ci.prove.gpu.probes import compare
from ci.prove.gpu.stage import Stage, Status
from ci.prove.gpu.wheelfolder import open_wheel
from flash_attn3_sm121.errors import UsageError
from flash_attn3_sm121.selftest import reference
from flash_attn3_sm121.selftest.reference import Mask

ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


def command(name: str, script: str, **more: object) -> Stage:
    stage = Stage(name=name, title=name, argv=(sys.executable, "-c", script), kind="command", share=1)
    return replace(stage, **more)  # type: ignore[arg-type]


def cases(function: str, stall_s: float = 60.0) -> Stage:
    argv = (sys.executable, "-m", "ci.prove.gpu.probes.loop", f"tests.fakes.gpu_samples:{function}")
    return Stage(
        name=function, title=function, argv=(*argv, "--device", "cpu", "--dtype", "bf16"), share=1, stall_s=stall_s
    )


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as a wheel without machine code; a folder of files is all that is asked of it here."""
    path = tmp_path_factory.mktemp("wheel") / "flash_attn3_sm121-0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((ROOT / "flash_attn3_sm121").rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts and "lib" not in file.parts:
                archive.write(file, file.relative_to(ROOT))
    return path


def test_each_end_of_a_child_is_recorded_and_the_next_stage_runs(tmp_path: Path) -> None:
    stages = [
        command("fault", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"),
        command("hang", "import time; print('so far', flush=True); time.sleep(600)"),
        command("code", "import sys; sys.exit('the reason')"),
        command("no program", "", argv=("/nonexistent/program",)),
        command("nonsense", "print('[]')", reader="doctor"),
        command("away", "", absent="no such device"),
        command("good", "pass"),
    ]
    kept: list[int] = []
    results = runner.run_all(stages, cwd=tmp_path, env=ENV, seconds=12, keep=lambda some: kept.append(len(some)))
    assert [result.status for result in results] == [
        Status.CRASHED, Status.TIMEOUT, Status.FAILED, Status.FAILED, Status.FAILED, Status.NOT_APPLICABLE, Status.OK,
    ]  # fmt: skip
    assert "SIGSEGV" in results[0].reason
    assert "so far" in results[1].tail and "stopped after" in results[1].reason
    assert "the reason" in results[2].tail
    assert kept == list(range(1, 8))


def test_a_case_that_kills_or_poisons_the_process_costs_only_itself(tmp_path: Path) -> None:
    result = casework.run_cases(cases("mishaps"), cwd=tmp_path, env=ENV, budget_s=300)
    assert [(case.name, case.status) for case in result.cases] == [
        ("right", Status.OK),
        ("fault", Status.CRASHED),
        ("wrong", Status.WRONG),
        ("poison", Status.FAILED),
        ("refuse", Status.REFUSED),
        ("broken", Status.FAILED),
        ("right again", Status.OK),
    ]
    assert result.status is Status.CRASHED
    assert "SIGSEGV" in result.cases[1].reason
    assert result.cases[4].reason == "head dimension 16 is not built"
    assert len(result.exit_codes) == 3 and result.exit_codes[-1] == 0


def test_a_case_that_hangs_is_stopped_and_the_next_one_runs(tmp_path: Path) -> None:
    result = casework.run_cases(cases("hang", stall_s=3.0), cwd=tmp_path, env=ENV, budget_s=300)
    assert [case.status for case in result.cases] == [Status.OK, Status.TIMEOUT, Status.OK]
    assert result.status is Status.TIMEOUT


def test_time_that_is_up_is_recorded_with_what_was_reached(tmp_path: Path) -> None:
    result = casework.run_cases(cases("hang"), cwd=tmp_path, env=ENV, budget_s=0.5)
    assert result.status is Status.TIMEOUT
    assert "stopped after" in result.reason


@pytest.mark.parametrize("softcap", [0.0, 15.0])
@pytest.mark.parametrize(
    "mask", [Mask(), Mask(causal=True), Mask(left=3, right=0), Mask(causal=True, chunk=4)], ids=str
)
def test_the_formula_is_the_selftests(mask: Mask, softcap: float) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, length, heads, 16).double() for length, heads in ((13, 4), (9, 2), (9, 2)))
    out, lse = compare.attention(q, k, v, compare.Rule(mask=mask, softcap=softcap))
    wanted, wanted_lse = reference.batch(q, k, v, mask, softcap=softcap)
    assert compare.gap(out, wanted) < 1e-12
    assert compare.gap(lse, wanted_lse) < 1e-12


def test_what_is_wrong_is_found() -> None:
    exact = torch.randn(64, dtype=torch.float64)
    low = exact.bfloat16()
    assert compare.close("out", low, exact, low).good
    off = low.clone()
    off[3] += 0.5
    assert not compare.close("out", off, exact, low).good
    off[3] = float("nan")
    assert not compare.close("out", off, exact, low).good
    assert not compare.close("out", off, exact, off).good  # a formula that failed itself allows nothing
    assert not compare.close("out", low[:5], exact, low).good
    assert not compare.close_lse(torch.zeros(2), torch.tensor([0.0, float("-inf")]).double()).good
    assert compare.same_bits("bits", low, low.clone()).good
    assert compare.same_bits("bits", torch.tensor([0.0]), torch.tensor([-0.0])).error == 1


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("========= ERROR SUMMARY: 0 errors", Status.OK),
        ("========= ERROR SUMMARY: 2 errors", Status.WRONG),
        ("========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)", Status.WRONG),
        ("Error: Device not supported", Status.NOT_APPLICABLE),
        ("Traceback", Status.FAILED),
    ],
)
def test_the_sanitizers_summary(text: str, status: Status) -> None:
    assert outcomes.sanitizer(text)[0] is status


DYNAMIC, SINGLE = "DynamicPersistentTileScheduler<(int)256>", "SingleTileScheduler<(bool)0>"
HAND_OVER = (("Read", DYNAMIC, 0xF1C0), ("Write", DYNAMIC, 0xF240))


@pytest.mark.parametrize(
    ("reports", "status"),
    [
        pytest.param([HAND_OVER, HAND_OVER], Status.OK, id="hand-overs"),
        pytest.param(
            [HAND_OVER, (("Read", SINGLE, 0xF1C0), ("Write", SINGLE, 0xF240))], Status.WRONG, id="no scheduler"
        ),
        pytest.param([(("Read", DYNAMIC, 0xF5F0), ("Write", DYNAMIC, 0x104F0))], Status.WRONG, id="far apart"),
        pytest.param([(*HAND_OVER, ("Read", DYNAMIC, 0xF200))], Status.WRONG, id="three accesses"),
        pytest.param([(("Write", DYNAMIC, 0xF1C0), ("Write", DYNAMIC, 0xF240))], Status.WRONG, id="two writes"),
    ],
)
def test_racecheck_is_not_believed_about_a_tiles_hand_over(
    reports: list[tuple[tuple[str, str, int], ...]], status: Status
) -> None:
    """The first as it was printed for one of our kernels; every other kind counts."""
    text = "========= COMPUTE-SANITIZER\n"
    for report in reports:
        lines = [f"{kind} access at void flash::Kernel<{name}>(T1::Params)+{at:#x}" for kind, name, at in report]
        text += "========= Error: Race reported between " + "\n=========     and ".join(lines) + " [32 hazards]\n"
        text += "========= \n"
    text += f"========= RACECHECK SUMMARY: {len(reports)} hazards displayed ({len(reports)} errors, 0 warnings)\n"
    assert outcomes.sanitizer(text)[0] is status


def test_the_sanitizers_verdict_counts_beside_the_cases(tmp_path: Path) -> None:
    """A checker that found something while every case agreed: here a process that says so on stdout, as it does."""
    stage = cases("fine")
    script = "import runpy, sys; print('========= ERROR SUMMARY: 3 errors'); sys.argv.pop(0); "
    script += "runpy.run_module('ci.prove.gpu.probes.loop', run_name='__main__')"
    argv = (sys.executable, "-c", script, *stage.argv[2:])
    checked = replace(stage, argv=argv, reader="sanitizer")
    result = runner.run_stage(checked, cwd=tmp_path, env=ENV, budget_s=120)
    assert [case.status for case in result.cases] == [Status.OK]
    assert result.status is Status.WRONG and "3 errors" in result.reason


def test_the_plan_for_a_gpu() -> None:
    setting = suite.Setting(
        python="python", device="cuda", native=True, proxy=True, root=ROOT, sanitizer="/x/compute-sanitizer",
        kernel_filter=True, pytest=True, triton=True, transformers=True,
    )  # fmt: skip
    stages = {stage.name: stage for stage in suite.stages(setting)}
    assert all(stage.absent is None for stage in stages.values())
    assert stages["numerics"].argv[-4:] == ("--backend", "native", "--sample", "1")
    assert stages["racecheck"].argv[:5] == (
        "/x/compute-sanitizer",
        "--tool",
        "racecheck",
        "--kernel-regex",
        "kns=flash",
    )
    assert any("PROXY" in word for word in stages["bench"].argv)
    for name, backend in {"sdpa": "sdpa", "determinism-sdpa": "sdpa", "flex": "flex"}.items():
        argv = stages[name].argv  # each fallback is asked for by name, whatever the wheel holds
        assert argv[argv.index("--backend") + 1] == backend
    bare = {s.name: s for s in suite.stages(replace(setting, sanitizer=None, pytest=False, triton=False))}
    assert "PATH" in str(bare["memcheck"].absent) and "pytest" in str(bare["tests"].absent)
    assert "triton" in str(bare["flex"].absent) and bare["transformers"].absent is None


def test_no_wheel_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other-1-py3-none-any.whl"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("other/__init__.py", "")
    for path in (tmp_path / "missing.whl", other):
        with pytest.raises(UsageError):
            open_wheel(path, tmp_path / path.stem)


class _Page(HTMLParser):
    """What a page would fetch: nothing may be."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [
            value or "" for name, value in attrs if name == "src" or (tag == "link" and value not in ("icon", "data:,"))
        ]


@pytest.mark.slow
def test_the_whole_of_it_on_a_cpu(tmp_path: Path, wheel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["gpu-test", "--wheel", str(wheel), "--out", str(out), "--device", "cpu", "--minutes", "4"]
    assert main([*words, "--sample", "201", "--commit", "abc"]) == 0
    said = json.loads((out / "gpu-test.json").read_text())
    assert said["good"] and said["commit"] == "abc" and said["wheel"]["sha256"] and not said["proxy"]
    found = {stage["name"]: stage for stage in said["stages"]}
    assert {name for name, stage in found.items() if stage["status"] == "not applicable"} == {
        "memcheck", "racecheck", "graphs", "transformers", "sdpa", "fallback", "determinism-sdpa", "tests", "flex",
    }  # fmt: skip
    assert str(ROOT) not in found["numerics"]["data"]["package"]  # the wheel's, not the checkout's
    assert found["bench"]["data"]["times_as_long_as_ours"]
    page = _Page()
    page.feed((out / "gpu-test.html").read_text())
    assert page.fetched == []
    assert "all right" in capsys.readouterr().out


def test_a_run_with_something_wrong_ends_with_an_error(tmp_path: Path, wheel: Path) -> None:
    out = tmp_path / "out"
    words = ["gpu-test", "--wheel", str(wheel), "--out", str(out), "--device", "cpu", "--stage", "numerics"]
    assert main([*words, "--minutes", "0.01"]) == 15
    said = json.loads((out / "gpu-test.json").read_text())
    assert not said["good"] and said["stages"][0]["status"] == "timeout"
    assert main([*words, "--proxy"]) == 2
