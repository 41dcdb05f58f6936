"""Other shapes of nanochat: the newer layout with its experiments, and the real kernels library beneath it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.kernels_envs import python_of
from tests.nanochat_web.harness import CONFIG, World, running, save

NEWER = Path(__file__).with_name("newer")


@pytest.mark.parametrize("branch", [False, True], ids=["harness", "experiment_refactor"])
def test_the_newer_layout_is_found_loaded_and_answers(tmp_path: Path, branch: bool) -> None:
    world = World.make(tmp_path / "world", light=True)
    manager = world.nanochat / "nanochat" / "checkpoint_manager.py"
    manager.unlink()
    shutil.copytree(NEWER, world.nanochat, dirs_exist_ok=True)
    if branch:  # the same layout with the modules where they were before
        (world.nanochat / "harness" / "checkpoint.py").rename(manager)
        with (world.nanochat / "nanochat" / "common.py").open("a", encoding="utf-8") as common:
            common.write((world.nanochat / "harness" / "runtime.py").read_text(encoding="utf-8"))
    shutil.copytree(world.base / "tokenizer", world.base / "experiments" / "mine" / "tokenizer")
    for source in ("chat", "base"):
        folder = world.base / "experiments" / "mine" / "d12" / source
        folder.mkdir(parents=True)
        save(folder / "model_000700.pt")
        meta = {"step": 700, "val_bpb": 0.8, "model_config": CONFIG}
        (folder / "meta_000700.json").write_text(json.dumps(meta), encoding="utf-8")
    with running(world) as server:
        models = server.json("/models")
        assert [model["problem"] for model in models["models"]] == [None, None]
        assert [model["id"] for model in models["models"]] == ["mine/chat/d12/700", "mine/base/d12/700"]
        assert models["default"] == "mine/chat/d12/700" and models["models"][0]["experiment"] == "mine"
        stream = server.chat("echo newer")
        assert stream.rest()[-1]["reason"] == "end" and stream.text == "newer"


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.11.7", "0.17.2"])
def test_the_real_kernels_library_hands_out_ours(tmp_path: Path, version: str) -> None:
    world = World.make(tmp_path / "world").usual()
    with running(world, "--python", str(python_of(version))) as server:
        assert "stand-in answers get_kernel" not in server.log
        stream = server.chat("echo real")
        serving = stream.until(lambda event: "serving" in event)["serving"]
        assert serving["text"].startswith("FlashAttention-3 is served by flash_attn3_sm121")
        assert stream.rest()[-1]["done"] and stream.text == "real"
