"""The drop-in for upstream's `flash_attn_3`, served by flash_attn3_sm121."""

from flash_attn3_sm121._version import UPSTREAM_VERSION as __version__

__all__ = ["__version__"]
