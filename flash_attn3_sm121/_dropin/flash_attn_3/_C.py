"""Importing this registers `torch.ops.flash_attn_3`, which is all that upstream's extension of this name does."""

from flash_attn3_sm121.api.ops import register

register()
