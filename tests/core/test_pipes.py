"""Commands whose output goes into a pipe that is closed early end in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "words",
    [
        ("flash_attn3_sm121", "doctor", "--json"),
        ("ci", "matrix", "--profile", "smoke"),
        ("ci", "plan", "--archs", "12.1"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_reader_that_leaves(words: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        argv = [sys.executable, "-m", *words]
        done = subprocess.run(argv, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writing)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr, done.stderr


@pytest.mark.parametrize("words", ["flash_attn3_sm121 hub env --hub /nowhere", "ci plan --archs 12.1"])
def test_outputs_that_are_closed(words: str) -> None:
    shell = f'"{sys.executable}" -m {words}'
    code = subprocess.run(["sh", "-c", f"{shell} 2>&-"], cwd=ROOT, stdout=subprocess.PIPE, check=False).returncode
    done = subprocess.run(["sh", "-c", f"{shell} >&-"], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert code == done.returncode == (0 if "plan" in words else 30)
    assert "Traceback" not in done.stderr
