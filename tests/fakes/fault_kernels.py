"""A library of very few kernels (fault_kernels.cu), as PTX alone: enough to run every fault, quick to compile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ci.commands import common, options
from ci.plan import costs, flags
from ci.plan.archs import Target
from ci.plan.plan import FamilyPlan, PlannedUnit
from ci.plan.profiles import select
from ci.plan.units import Unit
from ci.prove.gb10 import executable
from ci.prove.gb10.executable import Executable
from ci.sources.fault_patches import FAULT_PATCHES
from flash_attn3_sm121.arch import CAPABILITIES, Family, Image
from flash_attn3_sm121.builds import Profile

PROFILE = Profile(
    name="few",
    dtypes=("bf16",),
    head_dims=(64,),
    features=frozenset(
        {"causal", "local", "varlen", "append", "paged", "split", "packgqa", "backward", "sinks", "dlse"}
    ),
    about="what the host code may ask of the few kernels",
)


def text(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def family(*, more: bool) -> FamilyPlan:
    """The plan of the library; `more`: with a backward, and decoding from pages."""
    forward = ("#define FEW_MORE\n" if more else "") + text("fault_kernels.cu")
    return plan(PROFILE, {"fwd": forward, "prepare": text("fault_prepare.cu")})


def plan(profile: Profile, texts: Mapping[str, str]) -> FamilyPlan:
    """12.1's family without machine code: these files by their kind, and the host code of such a profile."""
    capability = CAPABILITIES["12.1"]
    chosen = select(profile, Family.SM8X)
    ptx = Image(kind="compute", number=capability.number)
    gencode = ("-gencode", f"arch={ptx},code={ptx}")
    planned = []
    for kind, source in {**texts, "api": '#include "flash_api_stable.cpp"\n'}.items():
        name = f"{profile.name}_{kind}"
        unit = Unit(name=name, kind=kind, head_dim=64, kernels=1, text=source, contents=(name,))
        defines = (*flags.family_defines(chosen, proxy=False), *flags.feature_defines(chosen, kind))
        planned.append(
            PlannedUnit(
                unit=unit,
                flags=flags.unit_flags(unit, Family.SM8X, defines, gencode=gencode, images=(str(ptx),)),
                cost=costs.estimate(unit, family=Family.SM8X, images=1),
                shard=1,
            )
        )
    target = Target(capability=capability, image=Image(kind="sm", number=capability.number))
    return FamilyPlan(
        selection=chosen,
        targets=(target,),
        images=(),
        ptx=(str(ptx),),
        units=tuple(planned),
        proxy="",
    )


def make(folder: Path, *, mended: bool) -> Executable:
    """The library, executable: `mended` with the patches and all its kernels, else with neither."""
    session = common.begin(options.Request(profile="smoke", archs="12.1", jobs=2))
    withheld = frozenset() if mended else frozenset(edit.name for edit in FAULT_PATCHES)
    inputs = common.gather_inputs(session, without=withheld)
    return executable.make(common.builder(session, inputs), family(more=mended), output=folder)
