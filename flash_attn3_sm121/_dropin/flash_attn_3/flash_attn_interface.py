"""The same module as the top-level `flash_attn_interface`."""

from flash_attn_interface import *  # noqa: F403
from flash_attn_interface import _flash_attn_backward, _flash_attn_forward  # noqa: F401
