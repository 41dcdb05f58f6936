"""FlashAttention-2's rotary kernel, in plain torch; nothing else of this folder exists here."""
