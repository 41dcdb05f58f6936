"""The drop-in for upstream's `flash_attn_interface`: the same functions, served by flash_attn3_sm121."""

import torch

from flash_attn3_sm121.api.interface import (
    _flash_attn_backward,
    _flash_attn_forward,
    flash_attn_combine,
    flash_attn_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
    get_scheduler_metadata,
)

# Some callers reach through the module to the ops; upstream has called them by both names.
flash_attn_3_cuda = flash_attn_3_gpu = torch.ops.flash_attn_3

__all__ = [
    "_flash_attn_backward",
    "_flash_attn_forward",
    "flash_attn_3_cuda",
    "flash_attn_3_gpu",
    "flash_attn_combine",
    "flash_attn_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "get_scheduler_metadata",
]
