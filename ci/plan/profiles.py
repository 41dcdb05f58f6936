"""Selections: which part of a family is built. What a profile leaves out is disabled, never left dangling."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ci.plan import models
from flash_attn3_sm121.arch import FAMILIES, Family, FamilySpec
from flash_attn3_sm121.builds import MODELS, PREFIX, PROFILES, Profile, for_models
from flash_attn3_sm121.errors import TableError, UsageError


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


def find(name: str) -> Profile:
    """The profile of that name, which may be one for models; raises UsageError with the nearest names."""
    if name.startswith(PREFIX):
        return for_models(models.of_profile(name))
    if name not in PROFILES:
        known = "; ".join(f"{profile.name}: {profile.about}" for profile in PROFILES.values())
        model = re.sub(r"[^a-z0-9]", "", name.lower())
        raise UsageError(
            f"unknown profile {name!r}{models.suggestion(name, PROFILES)}",
            hint=f"allowed: {known}; or name models: --models {model if model in MODELS else 'NAMES'}",
        )
    return PROFILES[name]


def select(profile: Profile, family: Family) -> Selection:
    """What of this profile the family can give. An empty share is an error of the table, not a silent skip."""
    spec = FAMILIES[family]
    models.refuse_missing(profile.models, spec)
    dtypes, head_dims, features = profile.share(spec)
    if not dtypes or not head_dims:
        raise TableError(f"profile {profile.name}: expected some dtype and head dim of family {family}, found none")
    return Selection(profile=profile.name, spec=spec, dtypes=dtypes, head_dims=head_dims, features=features)
