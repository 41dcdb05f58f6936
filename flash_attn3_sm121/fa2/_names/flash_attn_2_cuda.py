"""FlashAttention-2's extension by name; its functions are Python's here, served by flash_attn3_sm121."""

from flash_attn3_sm121.fa2.raw import bwd, fwd, fwd_kvcache, varlen_bwd, varlen_fwd

__all__ = ["bwd", "fwd", "fwd_kvcache", "varlen_bwd", "varlen_fwd"]
