"""Facts about the machine and the software that a result was measured with."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flash_attn3_sm121._version import __version__

if TYPE_CHECKING:
    import torch


def cpu_name() -> str:
    """The processor as the system names it; its architecture where it names none (many ARM kernels)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.machine()


def commit() -> str:
    """The checkout's commit, with `+` where files are changed; the version where there is no checkout."""
    folder = Path(__file__).absolute().parents[2]
    if not (folder / ".git").exists():
        return __version__
    try:
        head = _git(folder, "rev-parse", "--short=12", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", "flash_attn3_sm121")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"{__version__} ({type(error).__name__} from git)"
    return head + ("+" if changed else "")


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def stamped(tool: str, **data: object) -> str:
    """Results of another job than the bench itself as JSON, with the commit that they are of."""
    return json.dumps({"schema": 1, "tool": f"flash-attn3 bench --{tool}", "commit": commit(), **data}, indent=1) + "\n"


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def machine(device: torch.device) -> dict[str, str]:
    """Facts for the head of a report, in the order in which they are shown."""
    import torch

    from flash_attn3_sm121.flex.refuse import software

    facts = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "triton": software().triton or "none",
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        return {
            "device": gpu.name,
            "capability": f"{gpu.major}.{gpu.minor}",
            "SMs": str(gpu.multi_processor_count),
            "memory": f"{gpu.total_memory / 2**30:.0f} GiB",
            "cuda": str(torch.version.cuda),
            "allocator": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "default"),
            "driver": _driver(),
            "kernels": _kernels(),
            "peers": _peers(),
            **facts,
        }
    cores = os.cpu_count() or 1
    return {
        "device": cpu_name() if device.type == "cpu" else device.type,
        "threads": f"{torch.get_num_threads()} of {cores} CPUs",
        "load before": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        **facts,
    }


def _driver() -> str:
    """The driver's version as the kernel module tells it."""
    try:
        line = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    except OSError:
        return "unknown"
    return next((word for word in line.split() if word[0].isdigit() and "." in word), "unknown")


def _kernels() -> str:
    """Our version, and each library of the installed wheel with its pin, profile and hash."""
    from flash_attn3_sm121.native.library import installed

    found = [f"{x.facts.line}, sha256 {x.facts.sha256[:12]}" for x in installed()]
    return "; ".join([__version__, *(found or ["no libraries"])])


PEERS = ("flash-attn", "flash-attn-4", "flashinfer-python", "sageattention", "nvidia-cudnn-frontend")


def _peers() -> str:
    """The versions of other people's attention that are installed, and of cuDNN."""
    import torch

    versions = {f"{d.name} {d.version}" for name in PEERS for d in importlib.metadata.distributions(name=name)}
    cudnn: Any = torch.backends.cudnn  # without annotations
    return ", ".join([f"cudnn {cudnn.version()}", *sorted(versions)])
