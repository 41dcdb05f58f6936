"""FlashAttention-3 for the GPUs that upstream leaves out, with a complete fallback for every other device.

Importing this package imports neither torch nor any library: names are resolved on first use.
"""

from __future__ import annotations

from flash_attn3_sm121._version import __version__

__all__ = ["__version__"]
