"""Models by the names that somebody types: their profile's name, what no kernel serves, the table of the documents."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from flash_attn3_sm121.arch import CAPABILITIES, FamilySpec
from flash_attn3_sm121.builds import MODELS, PREFIX, Model
from flash_attn3_sm121.errors import UsageError


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
