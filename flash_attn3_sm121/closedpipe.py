"""Output into a pipe whose reader has gone (`flash-attn3 doctor | head`): an ordinary end, not an error."""

from __future__ import annotations

import os
import sys

# What a shell reports of a program that SIGPIPE ended.
EXIT_CODE = 141


def give_up() -> int:
    """Send what is still buffered nowhere, so that nothing fails again at exit; returns the exit code."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return EXIT_CODE
