"""FlashAttention-2's names and meaning, over the public functions. `_names/` holds the modules that programs import."""
