"""FlashAttention-2's attention modules; nothing else of this folder exists here."""
