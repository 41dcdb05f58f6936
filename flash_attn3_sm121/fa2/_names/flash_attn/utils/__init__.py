"""FlashAttention-2's `all_gather`, in `distributed`; nothing else of this folder exists here."""
