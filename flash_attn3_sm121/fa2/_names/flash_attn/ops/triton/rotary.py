"""FlashAttention-2's rotary kernel, in plain torch, served by flash_attn3_sm121."""

from flash_attn3_sm121.fa2.rotary import apply_rotary

__all__ = ["apply_rotary"]
