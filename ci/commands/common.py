"""What the building commands share: from a request to gathered inputs and a plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ci.build.family import Builder
from ci.build.inputs import Inputs
from ci.cache.folders import cache_root
from ci.commands import options
from ci.commands.options import Request
from ci.console import Narrator
from ci.machine import Machine
from ci.plan import cuda
from ci.plan.plan import BuildPlan
from ci.sources.fetch import fetch
from ci.sources.lock import DEFAULT_LOCK, read_lock
from ci.sources.patched import edited_tree
from ci.toolchain.headers import torch_headers
from ci.toolchain.resolve import resolve
from ci.verify import schemas
from ci.verify.gather import Disassembler


@dataclass(frozen=True, kw_only=True)
class Session:
    """One command's surroundings."""

    request: Request
    machine: Machine
    plan: BuildPlan
    cache: Path
    narrate: Narrator


def begin(request: Request, narrate: Narrator) -> Session:
    """Plan first: what makes no sense is refused before anything is fetched."""
    machine = options.this_machine()
    plan = options.plan_of(request, machine=machine, cuda=cuda.planned(request.cuda_home))
    return Session(request=request, machine=machine, plan=plan, cache=cache_root(), narrate=narrate)


def gather(session: Session, *, without: frozenset[str] = frozenset()) -> Inputs:
    """Fetch and check everything that the build starts from."""
    request, narrate, cache = session.request, session.narrate, session.cache
    tree = fetch(read_lock(request.lock or DEFAULT_LOCK), source=request.source, cache=cache, narrate=narrate)
    toolchain = resolve(target=str(session.plan.platform), cuda_home=request.cuda_home, cache=cache, narrate=narrate)
    headers = torch_headers(cache=cache, narrate=narrate)
    edited = edited_tree(tree, cache=cache, narrate=narrate, without=without)
    return Inputs(
        tree=tree, edited=edited, toolchain=toolchain, torch_headers=headers.folder, torch_headers_id=headers.id
    )


def builder(session: Session, inputs: Inputs) -> Builder:
    """A builder that runs at most as many compilers as was asked for, else as there are cores; memory limits it too."""
    return Builder(
        inputs=inputs,
        cache=session.cache,
        narrate=session.narrate,
        jobs=session.request.jobs or session.machine.cores,
        launcher=session.request.launcher,
    )


def disassembler(inputs: Inputs) -> Disassembler:
    return Disassembler(cuobjdump=inputs.toolchain.cuobjdump, nvdisasm=inputs.toolchain.nvdisasm)


def upstream_schemas(inputs: Inputs) -> dict[str, str]:
    """What upstream's own source declares, read from the pristine tree."""
    path = inputs.tree.hopper / "flash_api_stable.cpp"
    return schemas.from_source(path.read_text(encoding="utf-8"), origin=path.name)
