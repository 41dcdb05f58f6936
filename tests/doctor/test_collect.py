"""Facts read off real things: a driver tool that fails, broken libraries, a Python without torch, a child that dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from importlib.metadata import PathDistribution
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ci.wheel import wheel
from flash_attn3_sm121.doctor import clients, collect, probes
from flash_attn3_sm121.doctor.facts import Gpu
from flash_attn3_sm121.files import put_file
from flash_attn3_sm121.native import library as native
from flash_attn3_sm121.native.buildfacts import BuildFacts
from tests.fakes.libraries import SM8X

ROOT = Path(__file__).resolve().parents[2]
GB10 = Gpu(name="NVIDIA GB10", capability=(12, 1))


def _tool(folder: Path, script: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def test_the_driver_tool_of_a_gb10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _tool(tmp_path, "echo 'NVIDIA GB10, 12.1, 580.95.05, [N/A]'")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert collect.gpus() == ("580.95.05", None, (GB10,))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'couldn'\"'\"'t communicate with the NVIDIA driver'; exit 9", "exit code 9: couldn't communicate"),
        ("exit 127", "exit code 127"),
    ],
    ids=["no driver", "broken tool"],
)
def test_a_driver_tool_that_fails(script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _tool(tmp_path, script)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    driver, problem, found = collect.gpus()
    assert driver is None and found == () and problem is not None and words in problem


def test_two_gpus_and_noise() -> None:
    text = "warning: something\nNVIDIA H100, 9.0, 570.1, 81559 MiB\nNVIDIA GeForce RTX 5090, 12.0, 570.1, 32607 MiB\n"
    driver, found = collect.parse_gpus(text)
    assert driver == "570.1"
    assert [(gpu.capability, gpu.memory_mb) for gpu in found] == [((9, 0), 81559), ((12, 0), 32607)]


def _facts(folder: Path, data: bytes, *, sha256: str) -> None:
    facts = BuildFacts(
        family="sm8x",
        effective_arch=86,
        library="flash_attn3_sm8x.so",
        sha256=sha256,
        namespace="flash_attn3_sm8x",
        images=("sm_121",),
        ptx=(),
        dtypes=("bf16",),
        head_dims=(64,),
        backward_head_dims=(),
        features=("causal",),
        smem_limit=101376,
        profile="smoke",
        platform="linux_x86_64",
        cuda="13.0",
        upstream="3effce8",
    )
    (folder / "sm8x.json").write_text(facts.to_json(), encoding="utf-8")
    (folder / "flash_attn3_sm8x.so").write_bytes(data)


def test_a_library_that_is_no_library(tmp_path: Path) -> None:
    _facts(tmp_path, b"not an ELF file", sha256="0" * 64)
    (library,), errors = collect.libraries(tmp_path, load=True)
    assert errors == () and not library.intact
    assert library.error is not None and "flash_attn3_sm8x.so" in library.error


def test_what_ran_in_software_is_told_with_the_library(tmp_path: Path) -> None:
    _facts(tmp_path, b"", sha256="0" * 64)
    (before,), _ = collect.libraries(tmp_path, load=False)
    (tmp_path / "executed.json").write_text('{"attention": 96, "cases": 602, "wrong": 0}', encoding="utf-8")
    (after,), _ = collect.libraries(tmp_path, load=False)
    assert before.executed == ""
    assert after.executed == "executed in software: 96 attention kernels for 12.1 in 602 cases, none wrong"


def test_facts_without_library_and_facts_that_are_no_facts(tmp_path: Path) -> None:
    _facts(tmp_path, b"", sha256="0" * 64)
    (tmp_path / "flash_attn3_sm8x.so").unlink()
    (tmp_path / "sm90.json").write_text("{", encoding="utf-8")
    found, errors = collect.libraries(tmp_path, load=False)
    assert found == () and len(errors) == 2
    assert "which is not there" in errors[0] and "not JSON" in errors[1]


def test_a_child_that_is_killed_is_reported_not_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shim = tmp_path / "python"
    shim.write_text("#!/bin/sh\nkill -SEGV $$\n", encoding="utf-8")
    shim.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shim))
    assert probes.ask("torch") == {"error": "the process was ended by SIGSEGV"}


def test_a_child_that_says_more_is_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shim = tmp_path / "python"
    shim.write_text("#!/bin/sh\necho hello; echo '{\"repos\": []}'; echo goodbye\n", encoding="utf-8")
    shim.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shim))
    assert probes.ask("override") == {"repos": []}


def _distribution(site: Path, name: str, version: str) -> PathDistribution:
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    return PathDistribution(folder)


def test_ours_is_told_from_an_upstream_distribution(tmp_path: Path) -> None:
    found = collect.distributions(
        [
            _distribution(tmp_path, "flash-attn-3", "3.0.0b1"),
            _distribution(tmp_path / "flash_attn3_sm121" / "_dropin", "flash_attn_3", "3.0.0"),
            _distribution(tmp_path, "flash_attn3_sm121", "3.0.0.post1"),
            _distribution(tmp_path, "requests", "2"),
        ]
    )
    assert [(one.name, one.ours) for one in found] == [
        ("flash_attn_3", False),
        ("flash_attn_3", True),
        ("flash_attn3_sm121", True),
    ]


@pytest.mark.parametrize(
    ("gpus", "facts", "said"),
    [
        ((GB10,), {}, "native (family sm8x, machine code sm_121)"),
        ((), {}, "the tensors are on cpu"),
        ((GB10,), {"load_errors": {"sm8x": "no libcudart"}}, "no libcudart"),
        ((GB10,), {"turned_off": "the canary failed: 0.7"}, "canary failed: 0.7"),
    ],
    ids=["healthy", "hidden", "broken", "wrong"],
)
def test_who_serves_follows_what_was_found(
    gpus: tuple[Gpu, ...], facts: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "installed", lambda: (SimpleNamespace(facts=SM8X),))
    call = clients.typical_calls(gpus, **facts)[0]
    assert said in call.decision and (call.backend == "native") is ("native (" in said)


def test_a_device_without_free_memory_does_not_fail_the_canary(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.")

    monkeypatch.setattr(torch, "randn", full)
    assert probes._canary() == {"canary": "skipped: CUDA out of memory. Tried to allocate 2 MiB."}


def test_a_torch_that_another_cuda_hides_is_told_from_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(name: str, without: str | None = None) -> dict[str, Any]:
        return {} if without else {"error": "ImportError: /other/libc10.so: undefined symbol"}

    monkeypatch.setattr(probes, "ask", ask)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/other")
    assert collect.torch_facts().hidden_by == "LD_LIBRARY_PATH"
    monkeypatch.delenv("LD_LIBRARY_PATH")
    assert collect.torch_facts().hidden_by is None


@pytest.mark.slow
def test_an_install_whose_pth_file_is_not_read_is_told_what_to_do(tmp_path: Path) -> None:
    name = wheel.pure_name()
    path = put_file(tmp_path / name.file, wheel.wheel_bytes(name, wheel.wheel_files(name, libraries={}, licenses={})))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(tmp_path / "x y"), str(path)], check=True)
    code = "from flash_attn3_sm121.doctor import clients; print(clients._module('flash_attn_interface').fix)"
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "x y")}
    plain = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True, "check": True}
    fix = subprocess.run([sys.executable, "-c", code], **plain).stdout.strip()  # type: ignore[call-overload]
    assert fix == f'export PYTHONPATH="$PYTHONPATH:{tmp_path}/x y/flash_attn3_sm121/_dropin"'
    found = f"{fix} && '{sys.executable}' -c 'import flash_attn_interface as f; print(f.__file__)'"
    assert str(tmp_path) in subprocess.run(["sh", "-c", found], **plain).stdout  # type: ignore[call-overload]


@pytest.mark.slow
def test_a_python_without_torch_is_diagnosed(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", symlinks=True)
    python = tmp_path / "bare" / "bin" / "python"
    command = [str(python), "-m", "flash_attn3_sm121", "doctor", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    faults = [finding for finding in json.loads(done.stdout)["findings"] if finding["level"] == "fault"]
    assert any(fault["title"] == "torch is not installed" for fault in faults)
    assert all(fault["fix"] for fault in faults)


@pytest.mark.slow
def test_this_very_machine_is_diagnosed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flash_attn3_sm121", "doctor"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    assert "torch 2." in done.stdout and "Who would serve a typical call" in done.stdout


@pytest.mark.parametrize(
    ("version", "told"),
    [(None, False), ("0.0.33.post2", True), ("0.0.34", True), ("0.0.35+cu130", False), ("0.1", False)],
)
def test_an_xformers_that_wants_eight_results_is_named(
    version: str | None, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "_installed", lambda name: version)
    found = clients._xformers()
    assert (found is not None) == told
    assert found is None or "eight results of flash_attn_3::bwd" in str(found.problem)
