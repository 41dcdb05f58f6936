"""What OpenRLHF takes of FlashAttention-2's module, served by flash_attn3_sm121."""

from flash_attn3_sm121.fa2.distributed import all_gather

__all__ = ["all_gather"]
