"""Every example is run as its first lines say, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def run(*command: str) -> str:
    path = os.pathsep.join((str(ROOT), str(ROOT / "flash_attn3_sm121" / "_dropin")))
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=EXAMPLES)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_step_learns() -> None:
    lines = run(sys.executable, "training_step.py").splitlines()
    losses = [float(line.rsplit(" ", 1)[1]) for line in lines]
    assert len(losses) == 4 and losses[-1] < losses[0] / 2


def test_ragged_decode_agrees_row_by_row() -> None:
    assert run(sys.executable, "ragged_decode.py").count("paged differs") == 4


def test_two_processes_give_what_one_gives() -> None:
    gaps = [float(gap) for gap in run(sys.executable, "two_sparks.py").splitlines()[-1].rsplit(" by ", 1)[1].split()]
    assert len(gaps) == 4 and max(gaps) < 0.07  # bf16, sums of 2048 rows times 4 heads


def test_get_kernel_client_under_run() -> None:
    wrapped = (sys.executable, "-m", "flash_attn3_sm121", "run", "--", sys.executable)
    out = run(*wrapped, "get_kernel_client.py")
    assert "flash_attn3_sm121" in out and "the first token sees only itself" in out


# transformers_llama.py runs in the environment of the real transformers: tests/docs/test_snippets.py.


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_stay_short_and_say_how_to_run_them(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 70
    assert f"python examples/{path.name}" in text.split('"""')[1]
