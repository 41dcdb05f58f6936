"""Selections: which part of a family is built, by a profile or for models. What is left out is disabled."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from flash_attn3_sm121.arch import CAPABILITIES, FAMILIES, Family, FamilySpec, Image
from flash_attn3_sm121.builds import MODELS, PREFIX, PROFILES, Model, Profile, for_models
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

    def on(self, code: Iterable[Image]) -> Selection:
        """What of it is built as this code: nothing that none of it can run."""
        lost = set() if any(image.converts_e4m3 for image in code) else {"kv8", "fp8"}
        return replace(self, features=self.features - lost)


def find(name: str) -> Profile:
    """The profile of that name, which may be one for models; raises UsageError with the nearest names."""
    if name.startswith(PREFIX):
        return for_models(of_profile(name))
    if name not in PROFILES:
        known = "; ".join(f"{profile.name}: {profile.about}" for profile in PROFILES.values())
        model = re.sub(r"[^a-z0-9]", "", name.lower())
        raise UsageError(
            f"unknown profile {name!r}{suggestion(name, PROFILES)}",
            hint=f"allowed: {known}; or name models: --models {model if model in MODELS else 'NAMES'}",
        )
    return PROFILES[name]


def select(profile: Profile, family: Family) -> Selection:
    """What of this profile the family can give. An empty share is an error of the table, not a silent skip."""
    spec = FAMILIES[family]
    refuse_missing(profile.models, spec)
    dtypes, head_dims, features = profile.share(spec)
    if not dtypes or not head_dims:
        raise TableError(f"profile {profile.name}: expected some dtype and head dim of family {family}, found none")
    return Selection(profile=profile.name, spec=spec, dtypes=dtypes, head_dims=head_dims, features=features)


def profile_name(text: str) -> str:
    """The profile of the models that somebody typed: `gpt-oss, Gemma3` -> `models.gemma3.gptoss`, in any order.

    Dots and nothing else between the names: the wheel's version holds them (PEP 440).
    """
    words = (re.sub(r"[^a-z0-9]", "", word.lower()) for word in re.split(r"[\s,]+", text))
    return PREFIX + ".".join(sorted({word for word in words if word}))


def suggestion(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: the nearest known ones."""
    close = difflib.get_close_matches(word, list(known), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def of_profile(name: str) -> tuple[Model, ...]:
    """The models of a profile's name."""
    words = [word for word in name.removeprefix(PREFIX).split(".") if word]
    known = f"known: {', '.join(MODELS)}"
    if not words:
        raise UsageError("no model is named", hint=known)
    for word in words:
        if word not in MODELS:
            raise UsageError(f"unknown model {word!r}{suggestion(word, MODELS)}", hint=known)
    return tuple(MODELS[word] for word in dict.fromkeys(words))


def refuse_missing(models: tuple[Model, ...], spec: FamilySpec) -> None:
    """Raises UsageError where a kernel family cannot serve one of the models, whatever is built."""
    for model in models:
        if lacking := model.missing(spec):
            served = ", ".join(row.name for row in CAPABILITIES.values() if row.family is spec.family)
            raise UsageError(
                f"{model.name} ({model.title}) cannot run natively on capability {served}: it needs "
                f"{', '.join(lacking)}, which the kernels of family {spec.family} do not have",
                hint="leave it out of the list: its calls go to the fallback, which needs no wheel of its own",
            )


def models_table() -> str:
    """The table of docs/building.md."""
    lines = ["| `MODELS=` | models | types | head dims | causal | window | sinks | softcap | KV cache | source |"]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    for model in MODELS.values():
        values = {dim: f" (V: {dim_v})" for dim, dim_v in model.head_dims_v.items()}
        dims = ", ".join(f"{dim}{values.get(dim, '')}" for dim in model.head_dims)
        marks = ["yes" if word in model.features else "" for word in ("causal", "local", "sinks", "softcap")]
        cache = ", ".join(word for word in ("append", "paged", "split") if word in model.features)
        cells = (f"`{model.name}`", model.title, ", ".join(model.dtypes), dims, *marks, cache, ", ".join(model.sources))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
