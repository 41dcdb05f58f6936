"""The drop-in for upstream's `flash_attn_interface`: the same functions, served by flash_attn3_sm121."""

import flash_attn_3  # noqa: F401  # upstream's imports it as well: xDiT puts an empty module of this name where none is
import torch

from flash_attn3_sm121.api import interface
from flash_attn3_sm121.api.beta_callers import also_for_beta_callers
from flash_attn3_sm121.api.custom_ops import setup_context
from flash_attn3_sm121.api.functions import FlashAttnFunc, FlashAttnQKVPackedFunc, FlashAttnVarlenFunc
from flash_attn3_sm121.api.interface import (
    _flash_attn_backward,
    _flash_attn_forward,
    flash_attn_combine,
    flash_attn_func,
    flash_attn_qkvpacked_func,
    flash_attn_with_kvcache,
    get_scheduler_metadata,
)

flash_attn_varlen_func = also_for_beta_callers(interface.flash_attn_varlen_func)

# Some callers reach through the module to the ops; upstream has called them by both names.
flash_attn_3_cuda = flash_attn_3_gpu = torch.ops.flash_attn_3


def maybe_contiguous(x: torch.Tensor | None) -> torch.Tensor | None:
    """`x`, copied only where its last dimension has another stride than 1."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def round_multiple(x: int, m: int) -> int:
    """The smallest multiple of `m` that is not below `x`."""
    return -(-x // m) * m


def round_up_headdim(head_size: int) -> int:
    """The head dim of the kernel that serves `head_size`: none of upstream's is left out here."""
    return next((width for width in (64, 96, 128, 192) if head_size <= width), 256)


__all__ = [
    "FlashAttnFunc",
    "FlashAttnQKVPackedFunc",
    "FlashAttnVarlenFunc",
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
    "maybe_contiguous",
    "round_multiple",
    "round_up_headdim",
    "setup_context",
]
