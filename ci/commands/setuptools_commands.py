"""setuptools' wheel and sdist commands, by name; the harness does the work. Only setup.py imports this."""

from __future__ import annotations

import os
from pathlib import Path

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.sdist import sdist

from ci import ROOT
from ci.commands.frontend import build_wheel
from ci.process import execute
from flash_attn3_sm121.errors import FlashAttn3Error


class BdistWheel(bdist_wheel):  # type: ignore[misc]  # setuptools is untyped
    """setuptools' command by name; the harness makes the wheel, whole and checked."""

    def run(self) -> None:
        try:
            path = build_wheel(os.environ, Path(self.dist_dir))
        except FlashAttn3Error as error:
            # pip shows the traceback's last line and nothing else of worth: make that line the message.
            raise SystemExit(f"flash_attn3_sm121: error: {error}") from error
        self.distribution.dist_files.append(("bdist_wheel", "any", str(path)))


class Sdist(sdist):  # type: ignore[misc]
    """Everything that git tracks, so that a wheel can be built from the archive."""

    def add_defaults(self) -> None:
        super().add_defaults()
        done = execute(["git", "ls-files", "-z"], cwd=ROOT)
        if done.returncode == 0:
            self.filelist.extend(name for name in done.stdout.split("\0") if name and Path(name).is_file())
