"""The wheel for a call that falls back only because of what this install was built with: the command that builds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from flash_attn3_sm121.arch import FAMILIES, Family, FamilySpec
from flash_attn3_sm121.builds import MODELS, PREFIX, PROFILES, Model, Profile, for_models
from flash_attn3_sm121.call.facts import CallFacts
from flash_attn3_sm121.native.buildfacts import BuildFacts

FEW = 3  # where more models make such calls, a profile is the better answer
_IN_EVERY_WHEEL = frozenset({"causal", "packgqa", "dlse"})


def command(build: BuildFacts, call: CallFacts, refusal: Callable[[BuildFacts, CallFacts], str | None]) -> str | None:
    """The commands that build a wheel whose kernels serve a call, or None where no profile's would.

    Named are the models that make such calls, if they are few, and the smallest profile that serves the call and holds
    all that this library holds.

    Args:
        build: the library that serves the device, and refuses the call.
        refusal: why a library refuses a call, or None.
    """
    spec = FAMILIES[Family(build.family)]

    def serves(profile: Profile) -> bool:
        return refusal(_built(build, profile, spec), call) is None

    whole = next((item for item in PROFILES.values() if serves(item) and _holds(item, build, spec)), None)
    if whole is None:
        return None
    commands = [f"make wheel PROFILE={whole.name}"]
    fitting = [model for model in MODELS.values() if _asks(model, call, spec) and serves(for_models([model]))]
    if 1 <= len(fitting) <= FEW:
        there = build.profile.removeprefix(PREFIX).split(".") if build.profile.startswith(PREFIX) else []
        names = sorted({*there, *(model.name for model in fitting)})
        commands.insert(0, f'make wheel MODELS="{" ".join(names)}"')
    return " or ".join(commands)


def _built(build: BuildFacts, profile: Profile, spec: FamilySpec) -> BuildFacts:
    """The library as it would be in another profile."""
    dtypes, dims, features = profile.share(spec)
    backward = dims if "backward" in features else ()
    return replace(
        build, profile=profile.name, dtypes=dtypes, head_dims=dims, backward_head_dims=backward,
        features=tuple(sorted(features)),
    )  # fmt: skip


def _holds(profile: Profile, build: BuildFacts, spec: FamilySpec) -> bool:
    dtypes, dims, features = profile.share(spec)
    return {*build.dtypes} <= {*dtypes} and {*build.head_dims} <= {*dims} and {*build.features} <= features


def _asks(model: Model, call: CallFacts, spec: FamilySpec) -> bool:
    """Whether the model makes such calls, on a device that can serve it."""
    asked = (call.features & spec.features) | ({"backward"} if call.direction == "backward" else set())
    return (
        call.dtype in model.dtypes
        and call.head_dim in model.head_dims
        and call.head_dim_v == model.head_dim_v(call.head_dim)
        and asked <= model.features | _IN_EVERY_WHEEL
        and not model.missing(spec)
    )
