"""The harness's narration is that of the package's command line: `flash_attn3_sm121.console`."""

from flash_attn3_sm121.console import Narrator, Progress, format_bytes, format_seconds

__all__ = ["Narrator", "Progress", "format_bytes", "format_seconds"]
