"""What wheels are built with: profiles, and what the attention of well-known models asks of the kernels.

The harness plans from these tables, and dispatch names the wheel that a call would need. Pure.
A model's row is what the published configuration says, and nothing measured. Head dims are those of all sizes of a
family. Vision encoders beside a language model are not counted: a larger tile or the fallback serves them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flash_attn3_sm121.arch import COMMON_FEATURES, FAMILIES, Family, FamilySpec
from flash_attn3_sm121.errors import TableError


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model family and what its attention needs. The wheel's version holds `name`: lower case letters and digits."""

    name: str
    title: str
    dtypes: tuple[str, ...] = ("bf16",)
    head_dims: tuple[int, ...]
    head_dims_v: Mapping[int, int] = field(default_factory=dict)  # V's, by that of Q and K, where it differs
    features: frozenset[str]
    sources: tuple[str, ...]

    def missing(self, spec: FamilySpec) -> list[str]:
        """List the types, head dims and features that the model needs and the kernel family lacks."""
        lacking = [dtype for dtype in self.dtypes if dtype not in spec.dtypes]
        lacking += [f"head dim {dim}" for dim in self.head_dims if dim not in spec.head_dims]
        return lacking + sorted(self.features - spec.features)

    def head_dim_v(self, dim: int) -> int:
        return self.head_dims_v.get(dim, dim)


# Packed batches and finetuning; servers add a cache: paged, appended to, and split over the SMs for few queries.
_TRAINED = frozenset({"varlen", "packgqa", "backward"})
_DECODER = _TRAINED | {"causal", "paged", "append", "split"}

MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        Model(
            name="gptoss",
            title="gpt-oss 20B, 120B",
            head_dims=(64,),
            features=_DECODER | {"local", "sinks"},
            sources=("config.json of openai/gpt-oss-20b",),
        ),
        Model(
            name="llama3",
            title="Llama 3.1, 3.2, 3.3",
            head_dims=(64, 128),
            features=_DECODER,
            sources=("config.json of meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.1-8B"),
        ),
        Model(
            name="qwen3",
            title="Qwen3, dense and MoE",
            head_dims=(128,),
            features=_DECODER,
            sources=("config.json of Qwen/Qwen3-8B",),
        ),
        Model(
            name="qwen3next",
            title="Qwen3-Next, Qwen3-Coder-Next (each fourth layer; the others are linear attention)",
            head_dims=(256,),
            features=_DECODER,
            sources=("config.json of Qwen/Qwen3-Next-80B-A3B-Instruct",),
        ),
        Model(
            name="gemma3",
            title="Gemma 3 (1B to 12B: 256; 27B: 128)",
            head_dims=(128, 256),
            features=_DECODER | {"local"},
            sources=("config.json of google/gemma-3-1b-it", "google/gemma-3-27b-it"),
        ),
        Model(
            name="gemma2",
            title="Gemma 2 (2B, 9B: 256; 27B: 128)",
            head_dims=(128, 256),
            features=_DECODER | {"local", "softcap"},
            sources=("config.json of google/gemma-2-9b-it", "google/gemma-2-27b-it"),
        ),
        Model(
            name="mistral",
            title="Mistral 7B, Mistral Small, Ministral",
            head_dims=(128,),
            features=_DECODER | {"local"},
            sources=(
                "config.json of mistralai/Ministral-8B-Instruct-2410",
                "mistralai/Mistral-Small-3.2-24B-Instruct-2506",
            ),
        ),
        Model(
            name="phi4",
            title="Phi-4",
            head_dims=(128,),
            features=_DECODER,
            sources=("config.json of microsoft/phi-4",),
        ),
        Model(
            name="glm4",
            title="GLM-4.5-Air",
            head_dims=(128,),
            features=_DECODER,
            sources=("config.json of zai-org/GLM-4.5-Air",),
        ),
        # Absorbed, Q and K are the rotary part, and V is the latent, which a second query meets: how servers decode.
        Model(
            name="deepseek",
            title="DeepSeek-V2-Lite, Moonlight (MLA; absorbed: 64)",
            head_dims=(64, 192),
            head_dims_v={64: 512, 192: 128},
            features=_DECODER | {"diff_headdim", "qv"},
            sources=("config.json of deepseek-ai/DeepSeek-V2-Lite",),
        ),
        Model(
            name="wan",
            title="Wan 2.1, 2.2",
            head_dims=(128,),
            features=_TRAINED,
            sources=("transformer/config.json of Wan-AI/Wan2.2-T2V-A14B-Diffusers",),
        ),
        Model(
            name="flux",
            title="FLUX.1",
            head_dims=(128,),
            features=_TRAINED,
            sources=("transformer/config.json of black-forest-labs/FLUX.1-dev",),
        ),
        Model(
            name="nanochat",
            title="nanochat",
            head_dims=(128,),
            features=_DECODER - {"paged"} | {"local"},
            sources=("nanochat/gpt.py and scripts/base_train.py of karpathy/nanochat",),
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What to build of every family. Features and dtypes that a family lacks are simply not there for it."""

    name: str
    dtypes: tuple[str, ...]
    head_dims: tuple[int, ...]
    features: frozenset[str]
    about: str
    models: tuple[Model, ...] = ()  # that every family must be able to serve

    def share(self, spec: FamilySpec) -> tuple[tuple[str, ...], tuple[int, ...], frozenset[str]]:
        """The types, head dims and features that a family's library of this profile has."""
        dtypes = tuple(dtype for dtype in self.dtypes if dtype in spec.dtypes)
        features = self.features & spec.features
        if spec.family is Family.SM90 and "backward" in features:
            features |= {"deterministic"}  # compiled anyway; below Hopper it takes kernels of its own
        return dtypes, tuple(dim for dim in self.head_dims if dim in spec.head_dims), features


# `packgqa` costs nothing below Hopper (it is always on there), nor do `sinks` and `dlse`, pointers that every kernel
# reads; `chunk` is a form of local masking.
_EXTRA = frozenset().union(*(spec.features for spec in FAMILIES.values()))

# A profile holds what those before it hold.
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
            features=COMMON_FEATURES - {"softcap"} | {"sinks", "dlse"},
            about="bf16, head dims 64 and 128, forward, backward, sliding window, KV cache (append, paged, split)",
        ),
        # Softcap would double it for Gemma 2 alone. fp16 is no model's own type, but what many programs choose.
        Profile(
            name="common",
            dtypes=("bf16", "fp16"),
            head_dims=(64, 128, 256),
            features=COMMON_FEATURES - {"softcap"} | {"sinks", "dlse"},
            about="what most models need: bf16 and fp16, head dims 64, 128 and 256, all of nanochat's features",
        ),
        # For a KV cache in e4m3. Head dims and features as above: no model's checkpoint asks for it, but servers do.
        Profile(
            name="fp8",
            dtypes=("bf16", "fp16", "e4m3"),
            head_dims=(64, 128, 256),
            features=COMMON_FEATURES - {"softcap"} | {"sinks", "dlse", "kv8", "fp8"},
            about="all of common, and K and V in e4m3 beside Q in bf16, fp16 or e4m3 (an fp8 KV cache)",
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
PREFIX = "models."  # of the name of a profile for models


def for_models(chosen: Sequence[Model]) -> Profile:
    """The smallest profile that serves these models: each head dim by a tile of its own size.

    What every kernel reads anyway is left on, so that no call is refused for nothing.
    """
    wanted = frozenset[str]().union(*(model.features for model in chosen))
    return Profile(
        name=PREFIX + ".".join(sorted(model.name for model in chosen)),
        dtypes=tuple(dict.fromkeys(dtype for model in chosen for dtype in model.dtypes)),
        head_dims=tuple(sorted({dim for model in chosen for dim in model.head_dims})),
        features=wanted | {"causal", "packgqa", "sinks", "dlse"} | ({"chunk"} if "local" in wanted else frozenset()),
        about=", ".join(model.title for model in chosen),
        models=tuple(chosen),
    )


def validate() -> None:
    """Check the table against the features table; raises TableError naming the row, expected and found."""
    for name, model in MODELS.items():
        if not re.fullmatch(r"[a-z][a-z0-9]*", name):
            raise TableError(f"MODELS[{name}]: expected lower case letters and digits")
        if bool(model.head_dims_v) != ("diff_headdim" in model.features) or {*model.head_dims_v} - {*model.head_dims}:
            raise TableError(f"MODELS[{name}].head_dims_v: expected some with diff_headdim and only then, of head_dims")
        lacking = {str(family): model.missing(spec) for family, spec in FAMILIES.items()}
        if all(lacking.values()):
            raise TableError(f"MODELS[{name}]: expected a family that serves it, found none: {lacking}")


validate()
