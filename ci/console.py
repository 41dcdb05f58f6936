"""The harness's narration: that of `flash_attn3_sm121.console`, and a way to run an outside command in sight."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flash_attn3_sm121 import console
from flash_attn3_sm121.console import Progress, format_bytes, format_seconds

__all__ = ["Narrator", "Progress", "format_bytes", "format_seconds"]


@dataclass(kw_only=True)
class Narrator(console.Narrator):
    """Where narration goes. Tests pass a StringIO and a clock of their own."""

    def run(
        self, argv: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Print and run an outside command, its output captured; the caller judges the exit code."""
        self.command(argv)
        words = [str(word) for word in argv]
        return subprocess.run(words, cwd=cwd, env=env, text=True, capture_output=True, check=False)
