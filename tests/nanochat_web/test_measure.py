"""The command that times a class: every line of its table, and that all servers answer the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nanochat_web.harness import ROOT, World
from tests.nanochat_web.real import checkout_of, python

MEASURE = ROOT / "examples" / "nanochat_web" / "measure.py"
LINE = re.compile(r"^\| ([^|]+) \| (\d+) \| ([\d,]+) \| ([\d.]+) \| ([\d,]+) \| ([\d,]+) \|$", re.MULTILINE)


def table(world: World, root: Path, interpreter: Path, *arguments: str) -> tuple[str, list[tuple[str, ...]]]:
    done = subprocess.run(
        [sys.executable, str(MEASURE), "--nanochat", str(root), "--python", str(interpreter), *arguments],
        env={**world.environ(), "NANOCHAT_BASE_DIR": str(world.base)},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, LINE.findall(done.stdout)


def test_a_class_with_the_stand_in(tmp_path: Path) -> None:
    world = World.make(tmp_path / "world").usual()
    text, lines = table(
        world, world.nanochat, Path(sys.executable), "--chats", "1,6", "--tokens", "12", "--device", "cpu"
    )
    assert [line[:2] for line in lines] == [
        (f"this page, {how}", chats) for how in ("one batch", "one by one") for chats in ("1", "6")
    ]
    assert all(int(line[2].replace(",", "")) > 0 and float(line[3]) >= 0 for line in lines)
    assert "Answers of all servers: the same, letter by letter." in text
    assert "d12 · fine-tuned · step 2,000 · the CPU" in text


@pytest.mark.slow
def test_a_class_with_the_real_nanochat_and_its_own_server(tmp_path: Path) -> None:
    world = World.make(tmp_path / "world")
    arguments = ("--untrained", "2", "--chats", "1,3", "--tokens", "6", "--device", "cpu")
    text, lines = table(world, checkout_of("january"), python(), *arguments)
    assert [line[0] for line in lines][::2] == [
        "this page, one batch",
        "this page, one by one",
        "nanochat's own server",
    ]
    assert "the same, letter by letter" in text
