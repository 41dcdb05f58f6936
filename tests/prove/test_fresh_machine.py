"""README's two commands on a bare Debian: all of it, an hour. `make fresh` prints it as it goes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ci.prove.fresh.root import TOOLS

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "ci", "fresh"]
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or any(shutil.which(tool) is None for tool in TOOLS),
    reason="wants root and debootstrap: .ci/packages debootstrap debian-archive-keyring",
)


@pytest.mark.fresh
@pytest.mark.slow
@pytest.mark.network
@pytest.mark.nvcc
@needs_root
def test_a_newcomer_types_the_two_commands() -> None:
    done = subprocess.run([*COMMAND, "--ignore-changes", "--json"], cwd=ROOT, stdout=subprocess.PIPE, check=False)
    result = json.loads(done.stdout)
    assert done.returncode == 0, result
    assert [step["command"] for step in result["commands"]][:1] == ["make wheel"]
    assert result["passed"] and " passed" in result["commands"][-1]["closing"]


@pytest.mark.skipif(os.geteuid() == 0, reason="for users other than root")
def test_other_users_are_told_what_it_wants() -> None:
    done = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 12
    assert "wants root" in done.stderr and "as-root" in done.stderr


def test_help_teaches() -> None:
    done = subprocess.run([*COMMAND, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "make fresh" in done.stdout and "namespaces" in done.stdout
