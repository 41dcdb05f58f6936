"""Collect a machine's facts: the driver, torch, what is installed. `diagnose` says what is wrong with them.

Every outside thing is asked in a way that survives its absence. What could take the process down with it (loading a
library, launching a kernel) happens in a child process, in `probes`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from flash_attn3_sm121.arch import CAPABILITIES
from flash_attn3_sm121.doctor import clients, probes
from flash_attn3_sm121.doctor.facts import Call, Distribution, Gpu, Library, Machine, Torch
from flash_attn3_sm121.errors import FactsError, pip_command
from flash_attn3_sm121.native.buildfacts import EXECUTED_FILE, BuildFacts, executed_line
from flash_attn3_sm121.native.location import locate

INTERESTING = (
    "flash_attn3_sm121",
    "flash_attn_3",
    "flash_attn",
    "torch",
    "triton",
    "kernels",
    "transformers",
    "diffusers",
    "transformer_engine",
)
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "FLASH_ATTN3_BACKEND",
    "FLASH_ATTN3_CANARY",
    "FLASH_ATTN3_CHECK_CACHE",
    "FLASH_ATTN3_HUB",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "LOCAL_KERNELS",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "TORCH_CUDA_ARCH_LIST",
    "TRITON_PTXAS_PATH",
)


def parse_gpus(text: str) -> tuple[str | None, tuple[Gpu, ...]]:
    """nvidia-smi's CSV of `name,compute_cap,driver_version,memory.total` -> (driver, GPUs)."""
    driver, gpus = None, []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 4 or "." not in parts[1]:
            continue
        major, minor = parts[1].split(".", 1)
        # A GB10 shares the system's memory and reports "[N/A]".
        memory = int(parts[3].split()[0]) if parts[3].split()[0].isdigit() else None
        gpus.append(Gpu(name=parts[0], capability=(int(major), int(minor)), memory_mb=memory))
        driver = parts[2]
    return driver, tuple(gpus)


def gpus() -> tuple[str | None, str | None, tuple[Gpu, ...]]:
    """(driver, what went wrong, GPUs) as nvidia-smi reports them, without torch."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None, "nvidia-smi is not on PATH: no NVIDIA driver on this machine, or not in this container", ()
    command = [tool, "--query-gpu=name,compute_cap,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return None, "nvidia-smi did not answer within 30 s", ()
    except OSError as error:
        return None, f"nvidia-smi does not start: {error}", ()
    if done.returncode:
        return None, f"nvidia-smi: exit code {done.returncode}: {(done.stdout + done.stderr).strip()}", ()
    driver, devices = parse_gpus(done.stdout)
    return driver, None, devices


def torch_facts() -> Torch:
    """What `import torch` gives in a child process: a broken torch must not end the diagnosis."""
    answer = probes.ask("torch")
    if "error" in answer:
        wrong = "LD_LIBRARY_PATH" in os.environ and "error" not in probes.ask("torch", without="LD_LIBRARY_PATH")
        return Torch(error=str(answer["error"]), hidden_by="LD_LIBRARY_PATH" if wrong else None)
    return Torch(
        version=answer["version"],
        cuda=answer["cuda"],
        hip=answer["hip"],
        arch_list=tuple(answer["arch_list"]),
        devices=tuple(Gpu(name=name, capability=tuple(capability)) for name, capability in answer["devices"]),
        cuda_error=answer["cuda_error"],
    )


def _ours(location: Path) -> bool:
    return location.name == "_dropin" and location.parent.name == "flash_attn3_sm121"


def distributions(installed: Iterable[importlib.metadata.Distribution] | None = None) -> tuple[Distribution, ...]:
    """The installed distributions of INTERESTING, each place once, in the order in which Python finds them."""
    seen: dict[tuple[str, str], Distribution] = {}
    for distribution in importlib.metadata.distributions() if installed is None else installed:
        name = (distribution.metadata["Name"] or "").lower().replace("-", "_")
        if name not in INTERESTING:
            continue
        location = Path(str(distribution.locate_file(""))).resolve()
        ours = name == "flash_attn3_sm121" or (name == "flash_attn_3" and _ours(location))
        entry = Distribution(name=name, version=distribution.version, location=str(location), ours=ours)
        seen.setdefault((name, entry.location), entry)
    return tuple(seen.values())


def libraries(folder: Path, *, load: bool) -> tuple[tuple[Library, ...], tuple[str, ...]]:
    """(the family libraries of an install, errors about facts that cannot be read)."""
    readable, errors = [], []
    told = folder / EXECUTED_FILE
    executed = executed_line(json.loads(told.read_text(encoding="utf-8"))) if told.is_file() else ""
    for path in sorted(folder.glob("sm*.json")):
        try:
            facts = BuildFacts.read(path)
        except FactsError as error:
            errors.append(str(error))
            continue
        library = folder / facts.library
        if not library.is_file():
            errors.append(f"{path.name} names {facts.library}, which is not there")
            continue
        data = library.read_bytes()
        problem = None
        if load:
            problem = probes.ask("load", str(library), facts.namespace).get("error")
        readable.append(
            Library(
                family=facts.family,
                images=facts.images,
                ptx=facts.ptx,
                dtypes=facts.dtypes,
                head_dims=facts.head_dims,
                backward_head_dims=facts.backward_head_dims,
                features=facts.features,
                profile=facts.profile,
                proxy=facts.proxy,
                cuda=facts.cuda,
                size=len(data),
                intact=hashlib.sha256(data).hexdigest() == facts.sha256,
                error=problem,
                line=facts.line,
                executed=executed if CAPABILITIES["12.1"].target in facts.images else "",
            )
        )
    return tuple(readable), tuple(errors)


def _calls(torch: Torch, libs: Iterable[Library], canary: str | None) -> tuple[Call, ...]:
    errors = {library.family: library.error for library in libs if library.error is not None}
    failed = canary is not None and canary.startswith("failed")
    turned_off = f"the canary {canary}" if failed else None
    return clients.typical_calls(torch.devices, load_errors=errors, turned_off=turned_off)


def machine() -> Machine:
    """All facts about this machine."""
    driver, driver_error, found_gpus = gpus()
    torch = torch_facts()
    usable = torch.error is None
    location = locate()
    libs, facts_errors = libraries(location.folder, load=usable)
    wanted = probes.ask("canary") if usable and torch.devices and libs else {}
    canary = (wanted.get("canary") or f"failed: {wanted.get('error')}") if wanted else None
    return Machine(
        python=platform.python_version(),
        executable=sys.executable,
        pip=pip_command(),
        platform=platform.platform(),
        cpu=platform.machine(),
        in_venv=sys.prefix != sys.base_prefix,
        driver=driver,
        driver_error=driver_error,
        gpus=found_gpus,
        torch=torch,
        distributions=distributions(),
        libraries=libs,
        source_tree=location.note,
        facts_errors=facts_errors,
        clients=clients.look_at_clients(torch_works=usable),
        calls=_calls(torch, libs, canary) if usable else (),
        environment={name: os.environ[name] for name in VARIABLES if name in os.environ},
        canary=canary,
    )
