"""FlashAttention-2's rotary embedding; nothing else of this folder exists here."""
