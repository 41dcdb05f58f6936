"""Whole diagnoses of faked machines, as a person would read them: one golden file a situation."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable

import pytest

from flash_attn3_sm121.console import plain, show
from flash_attn3_sm121.doctor.cli import report
from flash_attn3_sm121.doctor.diagnose import diagnose
from flash_attn3_sm121.doctor.facts import Call, Client, Distribution, Gpu, Library, Machine, Torch

SITE = "/venv/lib/python3.12/site-packages"
OURS = Distribution(name="flash_attn3_sm121", version="3.0.0.post1+g3effce8.121.nanochat", location=SITE, ours=True)
DROPIN = Distribution(name="flash_attn_3", version="3.0.0", location=f"{SITE}/flash_attn3_sm121/_dropin", ours=True)
GB10 = Gpu(name="NVIDIA GB10", capability=(12, 1))
LIBRARY = Library(
    family="sm8x",
    images=("sm_121",),
    ptx=(),
    dtypes=("bf16",),
    head_dims=(64, 128),
    backward_head_dims=(64, 128),
    features=("backward", "causal"),
    profile="nanochat",
    proxy=False,
    size=9_000_000,
    cuda="13.0",
    intact=True,
    line="pin 3effce8, profile nanochat, sm_121, CUDA 13.0; bf16; head dims 64, 128; without softcap",
    executed="executed in software: 96 attention kernels for 12.1 in 602 cases, none wrong",
)
TORCH = Torch(
    version="2.11.0+cu130",
    cuda="13.0",
    arch_list=("sm_80", "sm_90", "sm_100", "sm_120", "compute_120"),
    devices=(GB10,),
)
CLIENTS = (
    Client(
        name="import flash_attn_interface", gets=f"{SITE}/flash_attn3_sm121/_dropin/flash_attn_interface.py", ours=True
    ),
    Client(name="transformers 5.23.0", gets='attn_implementation="flash_attention_3" works', ours=True),
    Client(name="get_kernel('varunneal/flash-attention-3')", gets="ours: the override is on", ours=True),
)
HEALTHY = Machine(
    python="3.12.3",
    executable="/venv/bin/python",
    pip="/venv/bin/python -m pip",
    platform="Linux-6.11.0-aarch64",
    cpu="aarch64",
    in_venv=True,
    driver="580.95.05",
    driver_error=None,
    gpus=(GB10,),
    torch=TORCH,
    distributions=(OURS, DROPIN),
    libraries=(LIBRARY,),
    clients=CLIENTS,
    calls=(
        Call(
            name="training, bf16",
            device="NVIDIA GB10",
            decision="backend: native (family sm8x, machine code sm_121)",
            backend="native",
        ),
    ),
    canary="passed",
)
UPSTREAM = Distribution(name="flash_attn_3", version="3.0.0b1", location=SITE)
BROKEN = dataclasses.replace(
    LIBRARY, error="libcudart.so.13: cannot open shared object file: No such file or directory"
)
RTX = Gpu(name="NVIDIA GeForce RTX 2080", capability=(7, 5), memory_mb=8192)
NO_TORCH = Torch(error="ModuleNotFoundError: No module named 'torch'")
OLD_ARCHS = dataclasses.replace(TORCH, version="2.9.1+cu126", cuda="12.6", arch_list=("sm_80", "sm_90"))
ON_CPU = (
    Call(
        name="training, bf16",
        device="CPU",
        decision="backend: sdpa\n  not native: it runs on CUDA devices and the tensors are on cpu",
        backend="sdpa",
    ),
)
NO_DRIVER = "nvidia-smi is not on PATH: no NVIDIA driver on this machine, or not in this container"

SITUATIONS: dict[str, Machine] = {
    "healthy-gb10": HEALTHY,
    "no-torch": dataclasses.replace(HEALTHY, torch=NO_TORCH, calls=(), canary=None, clients=CLIENTS[:1]),
    "torch-does-not-import": dataclasses.replace(
        HEALTHY, torch=Torch(error="ImportError: libcudnn.so.9: cannot open shared object file"), calls=(), canary=None
    ),
    "cpu-torch-on-a-gpu": dataclasses.replace(HEALTHY, torch=Torch(version="2.13.0+cpu"), canary=None),
    "torch-for-another-arch": dataclasses.replace(HEALTHY, torch=OLD_ARCHS),
    "torch-too-old": dataclasses.replace(HEALTHY, torch=dataclasses.replace(TORCH, version="2.8.0")),
    "broken-library": dataclasses.replace(HEALTHY, libraries=(BROKEN,), canary=None),
    "tampered-library": dataclasses.replace(HEALTHY, libraries=(dataclasses.replace(LIBRARY, intact=False),)),
    "pure-python-wheel": dataclasses.replace(HEALTHY, libraries=(), canary=None),
    "library-for-another-gpu": dataclasses.replace(
        HEALTHY,
        libraries=(
            dataclasses.replace(
                LIBRARY, images=("sm_86", "sm_89"), line=LIBRARY.line.replace("sm_121", "sm_86, sm_89")
            ),
        ),
    ),
    "upstream-in-the-way": dataclasses.replace(HEALTHY, distributions=(UPSTREAM, OURS, DROPIN)),
    "installed-twice": dataclasses.replace(
        HEALTHY, distributions=(OURS, dataclasses.replace(OURS, location="/usr/lib/python3/dist-packages"), DROPIN)
    ),
    "canary-failed": dataclasses.replace(HEALTHY, canary="failed: largest difference 0.7, allowed 0.02"),
    "gpu-without-a-family": dataclasses.replace(
        HEALTHY, gpus=(RTX,), torch=dataclasses.replace(TORCH, arch_list=("sm_75", "sm_80")), canary=None
    ),
    "cuda-does-not-start": dataclasses.replace(
        HEALTHY,
        torch=dataclasses.replace(
            TORCH, devices=(), cuda_error="The NVIDIA driver on your system is too old (found version 12020)."
        ),
        calls=ON_CPU,
        canary=None,
    ),
    "laptop": dataclasses.replace(
        HEALTHY,
        driver=None,
        driver_error=NO_DRIVER,
        gpus=(),
        torch=Torch(version="2.13.0"),
        libraries=(),
        canary=None,
        environment={"FLASH_ATTN3_BACKEND": "sdpa"},
    ),
    "gpu-that-torch-does-not-see": dataclasses.replace(
        HEALTHY,
        torch=dataclasses.replace(TORCH, devices=()),
        calls=ON_CPU,
        canary=None,
        environment={"CUDA_VISIBLE_DEVICES": "-1"},
    ),
    "driver-too-old": dataclasses.replace(
        HEALTHY,
        driver="570.124.06",
        canary="failed: the call raised RuntimeError: CUDA driver version is insufficient for CUDA runtime version",
    ),
    "facts-unreadable": dataclasses.replace(
        HEALTHY, libraries=(), facts_errors=("sm8x.json: not JSON: Expecting value: line 1 column 1 (char 0)",)
    ),
}
HARMLESS = {"healthy-gb10", "gpu-without-a-family", "laptop"}


@pytest.mark.parametrize("name", SITUATIONS)
def test_diagnosis(name: str, golden: Callable[[str, str], None]) -> None:
    machine = SITUATIONS[name]
    findings = diagnose(machine)
    golden(f"{name}.txt", plain(report(machine, findings)))
    faults = [finding for finding in findings if finding.level == "fault"]
    assert bool(faults) is (name not in HARMLESS)
    for fault in faults:
        assert fault.fix, f"a fault without a fix: {fault.title}"


def test_a_torch_that_another_cuda_hides_is_not_installed_anew() -> None:
    torch = Torch(error="ImportError: /other/libc10.so: undefined symbol", hidden_by="LD_LIBRARY_PATH")
    (fault,) = [one for one in diagnose(dataclasses.replace(HEALTHY, torch=torch)) if one.level == "fault"]
    assert str(fault.fix).startswith("unset LD_LIBRARY_PATH")


def test_a_driver_that_a_container_replaces_is_not_called_too_old() -> None:
    """nvidia-smi names the machine's driver; a container's own libcuda serves the newer runtime, as the canary saw."""
    assert not [one for one in diagnose(dataclasses.replace(HEALTHY, driver="570.124.06")) if one.level == "fault"]


@pytest.mark.parametrize("version", ["2.8.0a0+34c6371d24.nv25.08", "2.9.0a0+50eac811a6.nv25.09"])
def test_nvidias_container_gets_a_newer_container(version: str) -> None:
    lacking = dataclasses.replace(LIBRARY, error="sm8x.so: undefined symbol: aoti_torch_call_dispatcher")
    torch = dataclasses.replace(TORCH, version=version)
    machine = dataclasses.replace(HEALTHY, torch=torch, libraries=(lacking,), canary=None)
    faults = [one for one in diagnose(machine) if one.level == "fault"]
    assert faults and all(str(one.fix).startswith("docker pull <NVIDIA") for one in faults)


def test_a_terminal_gets_the_same_words_in_colour_within_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    machine, screen = SITUATIONS["upstream-in-the-way"], Terminal()
    blocks = report(machine, diagnose(machine))
    show(blocks, screen)
    assert "\x1b[1;31mFAULT" in screen.getvalue()
    words = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert "".join(words.split()) == "".join(plain(blocks).split())
    diagnosis = words[: words.index("Who would serve")]
    assert all(len(line.rstrip()) <= 80 for line in diagnosis.splitlines())


def test_a_proxy_library_is_not_called_a_wheel_without_machine_code() -> None:
    machine = dataclasses.replace(HEALTHY, libraries=(dataclasses.replace(LIBRARY, proxy=True, images=("sm_90",)),))
    (fault,) = [finding for finding in diagnose(machine) if finding.title == "no sm8x library in this install"]
    assert fault.level == "fault" and "found: a proxy build, for tests only" in str(fault.detail)
