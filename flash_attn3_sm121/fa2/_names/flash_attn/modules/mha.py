"""FlashAttention-2's attention modules, served by flash_attn3_sm121."""

from flash_attn3_sm121.fa2.mha import MHA, CrossAttention, FlashCrossAttention, FlashSelfAttention, SelfAttention

__all__ = ["MHA", "CrossAttention", "FlashCrossAttention", "FlashSelfAttention", "SelfAttention"]
