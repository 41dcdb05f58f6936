"""Single files of programs that are in no package index: git fetches them from where they live; none is kept."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Checkout:
    """Files of a repository at a commit."""

    url: str
    commit: str
    paths: tuple[str, ...]

    def into(self, folder: Path) -> Path:
        """Put the files into a folder; skips, with git's words, where the repository cannot be reached."""
        patience = {"GIT_TERMINAL_PROMPT": "0", "GIT_HTTP_LOW_SPEED_LIMIT": "1000", "GIT_HTTP_LOW_SPEED_TIME": "20"}
        for arguments in (
            ("init", "--quiet", "."),
            ("remote", "add", "origin", self.url),
            ("fetch", "--quiet", "--depth=1", "--filter=blob:none", "origin", self.commit),
            ("checkout", "--quiet", self.commit, "--", *self.paths),
        ):
            done = subprocess.run(
                ["git", *arguments],
                cwd=folder,
                env={**os.environ, **patience},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                pytest.skip(f"git {arguments[0]} of {self.url}: {done.stderr.strip()}")
        return folder
