"""The smoke wheel for tests: built once a session by the real command line, or taken from the content cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class BuiltWheel:
    """What `python -m ci wheel --json` said."""

    path: Path
    sha256: str
    log: str  # what it narrated


def build(profile: str, output: Path, *flags: str, **env: str) -> BuiltWheel:
    """`python -m ci wheel` for 12.1 and, unless a flag says otherwise, this machine's CPU; not published."""
    argv = [sys.executable, "-m", "ci", "wheel", "--profile", profile, "--archs", "12.1", "--no-publish", "--json"]
    done = subprocess.run(
        [*argv, *flags, "--output", str(output)],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(done.stdout)
    return BuiltWheel(path=Path(said["file"]), sha256=said["sha256"], log=done.stderr)


@pytest.fixture(scope="session")
def smoke_wheel(tmp_path_factory: pytest.TempPathFactory) -> BuiltWheel:
    """A smoke wheel for this machine. Tests that use it are marked `nvcc`: 100 CPU seconds where nothing is cached."""
    return build("smoke", tmp_path_factory.mktemp("smoke-wheel"))
