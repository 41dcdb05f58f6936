"""Models: what the attention of well-known model families asks of the kernels, so that a wheel can be planned for them.

A row is what the published configuration says, and nothing measured. Head dims are those of all sizes of a family.
Vision encoders beside a language model are not counted: a larger tile or the fallback serves them.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from flash_attn3_sm121.arch import CAPABILITIES, FAMILIES, FamilySpec
from flash_attn3_sm121.errors import TableError, UsageError


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model family and what its attention needs. The wheel's version holds `name`: lower case letters and digits."""

    name: str
    title: str
    dtypes: tuple[str, ...] = ("bf16",)
    head_dims: tuple[int, ...]
    head_dim_v: int | None = None  # where V's differs
    features: frozenset[str]
    sources: tuple[str, ...]

    def missing(self, spec: FamilySpec) -> list[str]:
        """List the types, head dims and features that the model needs and the kernel family lacks."""
        lacking = [dtype for dtype in self.dtypes if dtype not in spec.dtypes]
        lacking += [f"head dim {dim}" for dim in self.head_dims if dim not in spec.head_dims]
        for feature in sorted(self.features - spec.features):
            differ = f"V of another head dim than Q ({self.head_dim_v} and {self.head_dims[0]})"
            lacking.append(differ if feature == "diff_headdim" else feature)
        return lacking


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
        Model(
            name="deepseek",
            title="DeepSeek-V2-Lite, Moonlight (MLA)",
            head_dims=(192,),
            head_dim_v=128,
            features=_DECODER | {"diff_headdim"},
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

PREFIX = "models."


def profile_name(text: str) -> str:
    """The profile of the models that somebody typed: `gpt-oss, Gemma3` -> `models.gemma3.gptoss`, in any order.

    Dots and nothing else between the names: the wheel's version holds them (PEP 440).
    """
    words = (re.sub(r"[^a-z0-9]", "", word.lower()) for word in re.split(r"[\s,]+", text))
    return PREFIX + ".".join(sorted({word for word in words if word}))


def of_profile(name: str) -> tuple[Model, ...]:
    """The models of a profile's name."""
    words = [word for word in name.removeprefix(PREFIX).split(".") if word]
    known = f"known: {', '.join(MODELS)}"
    if not words:
        raise UsageError("no model is named", hint=known)
    for word in words:
        if word not in MODELS:
            close = difflib.get_close_matches(word, MODELS, n=1)
            raise UsageError(f"unknown model {word!r}" + (f"; did you mean {close[0]}?" if close else ""), hint=known)
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


def table() -> str:
    """The table of docs/building.md."""
    lines = ["| `MODELS=` | models | types | head dims | causal | window | sinks | softcap | KV cache | source |"]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    for model in MODELS.values():
        dims = ", ".join(str(dim) for dim in model.head_dims)
        if model.head_dim_v is not None:
            dims += f" (V: {model.head_dim_v}): not on 12.x"
        marks = ["yes" if word in model.features else "" for word in ("causal", "local", "sinks", "softcap")]
        cache = ", ".join(word for word in ("append", "paged", "split") if word in model.features)
        cells = (f"`{model.name}`", model.title, ", ".join(model.dtypes), dims, *marks, cache, ", ".join(model.sources))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def validate() -> None:
    """Check the table against the features table; raises TableError naming the row, expected and found."""
    for name, model in MODELS.items():
        if not re.fullmatch(r"[a-z][a-z0-9]*", name):
            raise TableError(f"MODELS[{name}]: expected lower case letters and digits")
        if (model.head_dim_v is not None) != ("diff_headdim" in model.features):
            raise TableError(f"MODELS[{name}].head_dim_v: expected one with the feature diff_headdim and only then")
        lacking = {str(family): model.missing(spec) for family, spec in FAMILIES.items()}
        if all(lacking.values()):
            raise TableError(f"MODELS[{name}]: expected a family that serves it, found none: {lacking}")


validate()
