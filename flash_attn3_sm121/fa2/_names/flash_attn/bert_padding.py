"""FlashAttention-2's padding helpers, served by flash_attn3_sm121."""

from importlib import import_module
from typing import Any

from flash_attn3_sm121.fa2.bert_padding import (
    index_first_axis,
    index_first_axis_residual,
    index_put_first_axis,
    pad_input,
    unpad_input,
    unpad_input_for_concatenated_sequences,
)

__all__ = [
    "index_first_axis",
    "index_first_axis_residual",
    "index_put_first_axis",
    "pad_input",
    "unpad_input",
    "unpad_input_for_concatenated_sequences",
]


def __getattr__(name: str) -> Any:
    if name in ("rearrange", "repeat"):  # upstream's module imports them from einops, and verl takes them from here
        return getattr(import_module("einops"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
