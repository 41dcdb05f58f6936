"""The same module as the top-level `flash_attn_config`."""

from flash_attn_config import *  # noqa: F403
