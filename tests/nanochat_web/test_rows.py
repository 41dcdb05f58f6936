"""Several chats as one batch: every token is the one that nanochat's own generator makes for the chat alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from examples.nanochat_web.checkout import open_checkout
from tests.nanochat_web.harness import ROOT, World
from tests.nanochat_web.real import checkout_of, python, untrained

COMPARE = Path(__file__).with_name("compare_rows.py")
AS_ONE = "several chats are decoded as one batch"


def compared(root: Path, base: Path, interpreter: Path, *arguments: str) -> dict[str, Any]:
    checkout = open_checkout(root, interpreter, {**os.environ, "NANOCHAT_BASE_DIR": str(base)})
    checkpoint = checkout.found()[0]
    done = subprocess.run(
        [str(interpreter), str(COMPARE), "sft", checkpoint.tag, str(checkpoint.step), *arguments],
        cwd=root,
        env={**checkout.environment(checkpoint, os.environ), "OMP_NUM_THREADS": "1", "STANDIN_GATES": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_chats_that_come_and_go_are_what_each_is_alone(tmp_path: Path) -> None:
    world = World.make(tmp_path / "world")
    world.put("chatsft_checkpoints", "d1", 1)
    told = compared(world.nanochat, world.base, Path(sys.executable))
    assert told["decoding"].startswith(AS_ONE)
    assert told["same"] == [True] * 8
    assert told["texts"][6] == "<|python_start|>6*7<|python_end|><|output_start|>42<|output_end|> is it"


def test_a_nanochat_that_takes_one_length_for_all_is_found_out(tmp_path: Path) -> None:
    world = World.make(tmp_path / "world")
    world.put("chatsft_checkpoints", "d1", 1)
    model = world.nanochat / "nanochat" / "gpt.py"
    text = model.read_text().replace(
        "cache_seqlens=kv_cache.cache_seqlens", "cache_seqlens=kv_cache.cache_seqlens[:1].expand(b)"
    )
    model.write_text(text)
    told = compared(world.nanochat, world.base, Path(sys.executable))
    assert told["decoding"].startswith("chats are decoded one by one: in a batch, chats of unlike lengths came out")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "as_one"),
    [("january", (), True), ("newest", (), False), ("newest", ("--ours",), True)],
    ids=["january", "newest with its own attention", "newest with ours"],
)
def test_the_real_nanochat(tmp_path: Path, name: str, arguments: tuple[str, ...], as_one: bool) -> None:
    root, interpreter = checkout_of(name), python()
    untrained(root, interpreter, tmp_path, depth=2)
    told = compared(root, tmp_path, interpreter, *arguments)
    assert told["decoding"].startswith(AS_ONE) is as_one
    assert told["calculation"] <= 4 + 3 + 2  # its marks are one token each
    if as_one:
        assert told["same"] == [True] * 8 and max(told["lengths"]) == 60


def test_what_runs_in_nanochats_python_imports_nothing_else() -> None:
    """Its Python has torch and nanochat, and need not have what the server needs."""
    for name in ("model", "rows", "worker", "untrained"):
        text = (ROOT / "examples" / "nanochat_web" / f"{name}.py").read_text(encoding="utf-8")
        imported = {
            line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))
        }
        assert imported - set(sys.stdlib_module_names) <= {"nanochat_web"}, name
