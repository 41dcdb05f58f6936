"""The drop-in modules for a process of its own, as an installed wheel's .pth line gives them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import flash_attn3_sm121

PACKAGE = Path(flash_attn3_sm121.__file__).parent


def python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run this Python with the drop-in modules importable."""
    path = os.pathsep.join([str(PACKAGE / "_dropin"), str(PACKAGE.parent)])
    environ = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environ, capture_output=True, text=True, check=False
    )
