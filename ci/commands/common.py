"""Shared by the commands that build: from a request to a plan, gathered inputs, a builder and a wheel."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from ci.build.family import Builder, Inputs
from ci.cache.folders import cache_root
from ci.cache.objects import ObjectStore
from ci.commands import options
from ci.commands.options import Request
from ci.plan.plan import BuildPlan, with_measured
from ci.settings import Machine, Settings, this_machine
from ci.sources.fetch import SourceTree, fetch
from ci.sources.lock import read_lock
from ci.sources.patched import edited_tree
from ci.toolchain.headers import torch_headers
from ci.toolchain.installed import format_version, planned_version
from ci.toolchain.pins import Pins
from ci.toolchain.resolve import resolve
from ci.verify import schemas
from ci.wheel.finish import Finished, make_wheel
from flash_attn3_sm121.errors import MissingPackageError, ToolchainError


@dataclass(frozen=True, kw_only=True)
class Session:
    """One run of a command: the request, its plan, and the settings."""

    request: Request
    machine: Machine
    plan: BuildPlan
    settings: Settings


def require_torch() -> None:
    """Refuse a command that calls a library's host code, before anything is compiled, where Python has no torch."""
    if importlib.util.find_spec("torch") is None:
        raise MissingPackageError(
            f"this command calls the library's host code, which needs torch; {sys.executable} has none",
            hint="make venv, then .venv/bin/python -m ci ...",
        )


def planned(request: Request, machine: Machine) -> BuildPlan:
    """The plan of a request, with the costs that the builds of this machine have measured."""
    plan = options.plan_of(request, machine=machine, cuda=planned_version(request.cuda_home))
    return with_measured(plan, ObjectStore(cache=cache_root()).measured())


def begin(request: Request) -> Session:
    """The session of a request. It is planned first: a request that makes no sense is refused before any download."""
    machine = this_machine()
    plan = planned(request, machine)
    settings = Settings(cores=machine.cores, memory_gb=machine.memory_gb, jobs=request.jobs, launcher=request.launcher)
    return Session(request=request, machine=machine, plan=plan, settings=settings)


def gather_inputs(session: Session, *, without: frozenset[str] = frozenset(), pins: Pins | None = None) -> Inputs:
    """Fetch and check everything that the build starts from.

    Args:
        session: of the command.
        without: edits that are left out, for tests of what they do.
        pins: the compiler's packages, where they are not the repository's.
    """
    request, settings = session.request, session.settings
    tree = fetch(read_lock(request.lock), settings, source=request.source)
    check_cuda(tree, session.plan.cuda)
    edited = edited_tree(tree, settings, without=without)
    toolchain = resolve(settings, target=str(session.plan.platform), cuda_home=request.cuda_home, pins=pins)
    headers = torch_headers(settings)
    return Inputs(
        tree=tree, edited=edited, toolchain=toolchain, torch_headers=headers.folder, torch_headers_id=headers.id
    )


def needed_cuda(setup: str) -> tuple[int, int] | None:
    """The oldest CUDA version that upstream's setup.py, of this text, admits. None where it does not say."""
    match = re.search(r"bare_metal_version < Version\(\"(\d+)\.(\d+)", setup)
    return match and (int(match[1]), int(match[2]))


def check_cuda(tree: SourceTree, cuda: tuple[int, int]) -> None:
    """Refuse sources for which a CUDA of this version is too old, as upstream's own setup.py says.

    Raises:
        ToolchainError: it is.
    """
    needed = needed_cuda((tree.hopper / "setup.py").read_text(encoding="utf-8"))
    if needed and cuda < needed:
        raise ToolchainError(
            f"FlashAttention {tree.lock.short} needs CUDA {format_version(needed)} or newer, and this is "
            f"{format_version(cuda)}",
            hint="build another pin (--pin), or with a newer toolkit (without --cuda-home: the pinned one)",
        )


def put_page(session: Session, text: str, target: Path | None) -> None:
    """Write a page to a file, or to stdout where no file is named."""
    if target is None:
        sys.stdout.write(text)
        return
    target.write_text(text, encoding="utf-8")
    session.settings.narrate.note(f"wrote {target}")


def builder(session: Session, inputs: Inputs) -> Builder:
    return Builder(inputs=inputs, settings=session.settings)


def build_wheel(builder: Builder, plan: BuildPlan, *, output: Path) -> Finished:
    """The whole way from gathered inputs to a wheel that passed."""
    schemas = upstream_schemas(builder.inputs)
    with builder.folder() as work:
        return make_wheel(builder.build(plan, work=work), builder=builder, work=work, schemas=schemas, output=output)


def upstream_schemas(inputs: Inputs) -> dict[str, str]:
    """The op schemas that upstream's own source declares, read from the pristine tree.

    Raises:
        VerifyError: the Python interface calls others, so that no wheel of these sources would pass.
    """
    path = inputs.tree.hopper / "flash_api_stable.cpp"
    declared = schemas.from_source(path.read_text(encoding="utf-8"), origin=path.name)
    return schemas.check_interface(declared, origin=f"{path.name} of {inputs.tree.lock.short}")
