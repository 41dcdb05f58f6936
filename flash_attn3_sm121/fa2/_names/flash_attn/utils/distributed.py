"""FlashAttention-2's `all_gather`, which OpenRLHF imports, served by flash_attn3_sm121."""

from flash_attn3_sm121.fa2.distributed import all_gather

__all__ = ["all_gather"]
