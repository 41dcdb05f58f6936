"""The diagnosis: a pure function from a machine's facts to findings. Every fault names the command that fixes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from flash_attn3_sm121.arch import CAPABILITIES, Image, capability
from flash_attn3_sm121.doctor.facts import Gpu, Library, Machine
from flash_attn3_sm121.errors import NEWEST_WHEEL

# The oldest driver (its major number) that serves a linked-in CUDA runtime of each major version.
OLDEST_DRIVER = {12: 525, 13: 580}
Level = Literal["ok", "note", "fault"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the diagnosis. A fault always has a `fix`: the one command to type."""

    level: Level
    title: str
    detail: str = ""
    fix: str | None = None


def _rebuild(machine: Machine, archs: str = "") -> str:
    wanted = f' ARCHS="{archs}"' if archs else ""
    return f"make wheel{wanted} && {machine.pip} install --force-reinstall --no-deps {NEWEST_WHEEL}"


def _newer_torch(machine: Machine) -> str:
    if ".nv" in machine.torch.version:  # NVIDIA's container, whose other packages are built for its torch
        return "docker pull <NVIDIA's PyTorch image, 25.11 or newer>"
    return f"{machine.pip} install --upgrade 'torch>=2.9'"


def diagnose(machine: Machine) -> tuple[Finding, ...]:
    """All findings about a machine: installation, torch, devices, libraries, clients, canary."""
    return (
        *_install(machine),
        *_torch(machine),
        *_devices(machine),
        *_libraries(machine),
        *_clients(machine),
        *_canary(machine),
    )


def _install(machine: Machine) -> Iterator[Finding]:
    ours = machine.distribution("flash_attn3_sm121")
    if machine.source_tree is not None:
        yield Finding(
            level="note", title="python imports a source tree, not an installed wheel", detail=machine.source_tree
        )
    if not ours:
        yield Finding(
            level="note",
            title="flash_attn3_sm121 runs from a folder, it is not installed",
            detail="clients that look for the flash_attn_3 distribution find it only after an install",
            fix=f"{machine.pip} install .",
        )
    elif len(ours) > 1:
        places = ", ".join(f"{copy.version} in {copy.location}" for copy in ours)
        yield Finding(
            level="fault",
            title=f"flash_attn3_sm121 is installed {len(ours)} times",
            detail=f"{places}; the first one on sys.path wins",
            fix=f"{machine.pip} uninstall -y flash_attn3_sm121  # then install the one you want",
        )
    else:
        yield Finding(level="ok", title=f"flash_attn3_sm121 {ours[0].version}", detail=ours[0].location)
    for other in machine.distribution("flash_attn_3"):
        if not other.ours:
            yield Finding(
                level="fault",
                title=f"another flash_attn_3 ({other.version}) is installed and hides our flash_attn_interface",
                detail=f"{other.location}; on GPUs it was not built for it fails, or returns garbage",
                fix=f"{machine.pip} uninstall -y flash_attn_3",
            )


def _torch(machine: Machine) -> Iterator[Finding]:
    torch = machine.torch
    if torch.error is not None:
        missing = "No module named 'torch'" in torch.error
        yield Finding(
            level="fault",
            title="torch is not installed" if missing else "torch does not import",
            detail="" if missing else torch.error,
            fix=f"unset {torch.hidden_by}  # another CUDA's libraries are found there"
            if torch.hidden_by
            else f"{machine.pip} install {'' if missing else '--force-reinstall '}'torch>=2.9'",
        )
        return
    major, minor = (int(part) for part in torch.version.split(".")[:2])
    if (major, minor) < (2, 9):
        yield Finding(
            level="fault",
            title=f"torch {torch.version} is too old",
            detail="expected 2.9 or newer",
            fix=_newer_torch(machine),
        )
    else:
        flavour = f"CUDA {torch.cuda}" if torch.cuda else ("ROCm" if torch.hip else "CPU only")
        yield Finding(level="ok", title=f"torch {torch.version} ({flavour})")
    if machine.gpus and torch.cuda is None and torch.hip is None:
        yield Finding(
            level="fault",
            title="this torch is built without CUDA, and the machine has a GPU",
            detail=f"{machine.gpus[0].name}: every call runs on the CPU fallback",
            fix=f"{machine.pip} install --force-reinstall torch --index-url <the CUDA index that "
            "pytorch's install page names for your driver>",
        )
    if torch.cuda_error is not None:
        yield Finding(
            level="fault",
            title="torch cannot use CUDA",
            detail=torch.cuda_error,
            fix="nvidia-smi  # a driver that is missing or too old shows here",
        )
    elif machine.gpus and torch.cuda and not torch.devices:
        hidden = machine.environment.get("CUDA_VISIBLE_DEVICES")
        yield Finding(
            level="fault",
            title="torch sees no GPU, and the machine has one",
            detail=f"{machine.gpus[0].name}"
            + ("" if hidden is None else f"; CUDA_VISIBLE_DEVICES={hidden!r} shows none of those there are"),
            fix=f"{machine.executable} -c 'import torch; torch.cuda.init()'  # says why"
            if hidden is None
            else "unset CUDA_VISIBLE_DEVICES",
        )


def _devices(machine: Machine) -> Iterator[Finding]:
    if not machine.gpus:
        yield Finding(level="note", title="no NVIDIA GPU found", detail=machine.driver_error or "")
        return
    for gpu in machine.gpus:
        name = ".".join(str(part) for part in gpu.capability)
        row = capability(*gpu.capability)
        if row is None:
            detail = f"known: {', '.join(CAPABILITIES)}; the fallback serves it"
            yield Finding(level="note", title=f"{gpu.name}: no kernel family for capability {name}", detail=detail)
        else:
            detail = f"capability {name}, family {row.family}, driver {machine.driver}"
            yield Finding(level="ok", title=gpu.name, detail=detail)
        yield from _torch_covers(machine, gpu, name)


def _torch_covers(machine: Machine, gpu: Gpu, name: str) -> Iterator[Finding]:
    """Whether torch was built for a GPU. Our kernels do not depend on it; every other layer of a model does."""
    if not machine.torch.cuda or not machine.torch.arch_list:
        return
    images = [Image.parse(text) for text in machine.torch.arch_list if text.startswith(("sm_", "compute_"))]
    if not any(image.runs_on(*gpu.capability) for image in images):
        yield Finding(
            level="fault",
            title=f"this torch has no kernels for capability {name}",
            detail=f"it was built for {', '.join(machine.torch.arch_list)}: the model itself fails, with or without us",
            fix=f"{machine.pip} install --upgrade torch  # a build whose arch list reaches {name}",
        )


def _libraries(machine: Machine) -> Iterator[Finding]:
    for error in machine.facts_errors:
        yield Finding(level="fault", title="a library's facts cannot be read", detail=error, fix=_rebuild(machine))
    for library in machine.libraries:
        yield from _library(library, machine)
        yield from _driver_serves(library, machine)
    wanted = {row.family.value for gpu in machine.gpus if (row := capability(*gpu.capability)) is not None}
    present = {library.family for library in machine.libraries if not library.proxy}
    for gpu in machine.gpus:
        row = capability(*gpu.capability)
        if row is None or row.family.value not in present:
            continue
        library = next(lib for lib in machine.libraries if lib.family == row.family.value and not lib.proxy)
        code = [Image.parse(text) for text in (*library.images, *library.ptx)]
        if not any(image.runs_on(*gpu.capability) for image in code):
            yield Finding(
                level="fault",
                title=f"the {library.family} library holds no machine code for {gpu.name}",
                detail=f"expected code for {row.name}, found {', '.join((*library.images, *library.ptx))}",
                fix=_rebuild(machine, row.name),
            )
    for family in sorted(wanted - present):
        names = " ".join(row.name for gpu in machine.gpus if (row := capability(*gpu.capability)) is not None)
        nothing = "a proxy build, for tests only" if machine.libraries else "none (a wheel without machine code)"
        held = ", ".join(sorted(present)) or nothing
        yield Finding(
            level="fault",
            title=f"no {family} library in this install",
            detail=f"found: {held}; the fallback serves every call",
            fix=_rebuild(machine, names),
        )


def _driver_serves(library: Library, machine: Machine) -> Iterator[Finding]:
    """A library has its own CUDA runtime linked in, which needs a driver as new as itself, whatever torch needs."""
    if machine.driver is None or machine.canary == "passed":  # a container may bring a newer driver library along
        return
    oldest = OLDEST_DRIVER.get(int(library.cuda.split(".")[0]), 0)
    if int(machine.driver.split(".")[0]) < oldest:
        yield Finding(
            level="fault",
            title=f"driver {machine.driver} is too old for the {library.family} library",
            detail=f"its CUDA {library.cuda} runtime wants driver {oldest} or newer; the fallback serves every call",
            fix="update the NVIDIA driver, or rebuild: python -m ci wheel --cuda-home <a CUDA 12.9 toolkit>",
        )


def _library(library: Library, machine: Machine) -> Iterator[Finding]:
    if library.error is not None:
        yield Finding(
            level="fault",
            title=f"the {library.family} library does not load",
            detail=library.error,
            fix=_newer_torch(machine) if "undefined symbol" in library.error else _rebuild(machine),
        )
    elif not library.intact:
        yield Finding(
            level="fault",
            title=f"the {library.family} library is not the file that was built",
            detail="its sha256 differs from the one in its facts",
            fix=_rebuild(machine),
        )
    else:
        mark = " (PROXY: a test build, not for use)" if library.proxy else ""
        detail = "\n".join(filter(None, (library.line, library.executed)))
        yield Finding(level="ok", title=f"library {library.family}{mark}", detail=detail)


def _clients(machine: Machine) -> Iterator[Finding]:
    for client in machine.clients:
        if client.problem is not None:
            yield Finding(
                level="fault" if client.fix else "note",
                title=f"{client.name}: {client.problem}",
                detail=f"gets {client.gets}",
                fix=client.fix,
            )
        else:
            yield Finding(level="ok" if client.ours else "note", title=client.name, detail=client.gets)


def _canary(machine: Machine) -> Iterator[Finding]:
    if machine.canary is None:
        return
    if machine.canary.startswith("failed"):
        yield Finding(
            level="fault",
            title="the native kernels do not agree with the fallback on this device",
            detail=f"{machine.canary}; native is off, the fallback serves (please report this)",
            fix="FLASH_ATTN3_BACKEND=sdpa <your command>",
        )
    else:
        yield Finding(level="ok" if machine.canary == "passed" else "note", title=f"canary {machine.canary}")
