"""Profiles: which part of a family is built. A profile is data; what it leaves out is disabled, never left dangling."""

from __future__ import annotations

from dataclasses import dataclass

from ci.plan import models
from ci.plan.models import Model
from flash_attn3_sm121.arch import COMMON_FEATURES, FAMILIES, Family, FamilySpec
from flash_attn3_sm121.errors import TableError, UsageError


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What to build of every family. Features and dtypes that a family lacks are simply not there for it."""

    name: str
    dtypes: tuple[str, ...]
    head_dims: tuple[int, ...]
    features: frozenset[str]
    about: str
    models: tuple[Model, ...] = ()  # that every family must be able to serve


# `packgqa` costs nothing below Hopper (it is always on there), nor do `sinks` and `dlse`, pointers that every kernel
# reads; `chunk` is a form of local masking.
_EXTRA = frozenset().union(*(spec.features for spec in FAMILIES.values()))

PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            name="smoke",
            dtypes=("bf16",),
            head_dims=(64,),
            features=frozenset({"causal", "varlen", "packgqa", "sinks"}),
            about="one head dim, forward only: a real library in minutes, for tests",
        ),
        Profile(
            name="nanochat",
            dtypes=("bf16",),
            head_dims=(64, 128),
            features=COMMON_FEATURES - {"softcap"} | {"deterministic", "sinks", "dlse"},
            about="bf16, head dims 64 and 128, forward, backward, sliding window, KV cache (append, paged, split)",
        ),
        # Softcap would double it, and of the models of the table only Gemma 2 has it; fp16 is what many programs choose.
        Profile(
            name="common",
            dtypes=("bf16", "fp16"),
            head_dims=(64, 128, 256),
            features=COMMON_FEATURES - {"softcap"} | {"deterministic", "sinks", "dlse"},
            about="what most models need: bf16 and fp16, head dims 64, 128 and 256, all of nanochat's features",
        ),
        Profile(
            name="full",
            dtypes=("bf16", "fp16", "e4m3"),
            head_dims=(64, 96, 128, 192, 256),
            features=_EXTRA,
            about="everything that the family has",
        ),
    )
}

DEFAULT = "common"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A profile's share of one family: what its library will be able to do, no more."""

    profile: str
    spec: FamilySpec
    dtypes: tuple[str, ...]
    head_dims: tuple[int, ...]
    features: frozenset[str]

    @property
    def family(self) -> Family:
        return self.spec.family

    @property
    def backward_head_dims(self) -> tuple[int, ...]:
        return self.head_dims if "backward" in self.features else ()

    def has(self, feature: str) -> bool:
        return feature in self.features


def for_models(name: str) -> Profile:
    """The smallest profile that serves the models of its name: each head dim by a tile of its own size.

    What every kernel reads anyway is left on, so that no call is refused for nothing.
    """
    chosen = models.of_profile(name)
    wanted = frozenset[str]().union(*(model.features for model in chosen))
    return Profile(
        name=models.PREFIX + ".".join(sorted(model.name for model in chosen)),
        dtypes=tuple(dict.fromkeys(dtype for model in chosen for dtype in model.dtypes)),
        head_dims=tuple(sorted({dim for model in chosen for dim in model.head_dims})),
        features=wanted | {"causal", "packgqa", "sinks", "dlse"} | ({"chunk"} if "local" in wanted else frozenset()),
        about=", ".join(model.title for model in chosen),
        models=chosen,
    )


def find(name: str) -> Profile:
    if name.startswith(models.PREFIX):
        return for_models(name)
    if name not in PROFILES:
        known = "; ".join(f"{profile.name}: {profile.about}" for profile in PROFILES.values())
        raise UsageError(f"unknown profile {name!r}", hint=f"allowed: {known}; or name models with --models")
    return PROFILES[name]


def select(profile: Profile, family: Family) -> Selection:
    """What of this profile the family can give. An empty share is an error of the table, not a silent skip."""
    spec = FAMILIES[family]
    models.refuse_missing(profile.models, spec)
    chosen = Selection(
        profile=profile.name,
        spec=spec,
        dtypes=tuple(dtype for dtype in profile.dtypes if dtype in spec.dtypes),
        head_dims=tuple(dim for dim in profile.head_dims if dim in spec.head_dims),
        features=profile.features & spec.features,
    )
    if not chosen.dtypes or not chosen.head_dims:
        raise TableError(f"profile {profile.name}: expected some dtype and head dim of family {family}, found none")
    return chosen
