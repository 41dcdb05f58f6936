"""Checkpoints are found the way nanochat stores them, in both layouts; what is broken is listed with the reason."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from examples.nanochat_web.checkpoints import SOURCES, discover, looked_at
from tests.nanochat_web.harness import CONFIG, World


def test_classic_in_the_order_one_would_choose(world: World) -> None:
    world.put("chatsft_checkpoints", "d4", 900, val_loss=2.1)
    world.put("chatrl_checkpoints", "d12", 466)
    world.put("mid_checkpoints", "d12", 811, val_bpb=0.9)
    found = discover(world.base, world.base / "experiments", "classic")
    assert [one.key for one in found] == [
        "sft/d12/2000",
        "sft/d4/900",
        "sft/d4/300",
        "rl/d12/466",
        "mid/d12/811",
        "base/d12/5500",
    ]
    told = found[0].to_json()
    assert told["metric"] == {"name": "validation loss", "value": 1.649}
    assert (told["bytes"], told["step"], told["layers"], told["context"]) == (123456, 2000, 1, 256)
    assert found[3].metric is None
    assert found[4].metric == ("validation bits per byte", 0.9)
    assert [one.source.style for one in found] == ["chat"] * 5 + ["text"]


def test_deeper_models_come_first_by_number_not_by_letter(world: World) -> None:
    world.put("chatsft_checkpoints", "d9", 1)
    world.put("chatsft_checkpoints", "d20", 1)
    keys = [one.key for one in discover(world.base, world.base, "classic") if one.source.name == "sft"]
    assert keys == ["sft/d20/1", "sft/d12/2000", "sft/d9/1", "sft/d4/300"]


def test_the_newer_layout(tmp_path: Path) -> None:
    for name in ("chat", "base", "logs"):
        folder = tmp_path / "experiments" / "mine" / "d12" / name
        folder.mkdir(parents=True)
        (folder / "model_000100.pt").write_bytes(b"x")
        (folder / "meta_000100.json").write_text(json.dumps({"model_config": CONFIG}), encoding="utf-8")
    found = discover(tmp_path, tmp_path / "experiments", "experiments")
    assert [one.key for one in found] == ["mine/chat/d12/100", "mine/base/d12/100"]
    assert discover(tmp_path, tmp_path / "experiments", "classic") == ()


@pytest.mark.parametrize(
    ("meta", "problem"),
    [
        ('{"step": 7, "model_con', "is not JSON (line 1)"),
        ("[]", "holds a list, expected an object"),
        ('{"step": 7}', "has no model_config"),
        (None, "is missing beside it"),
    ],
    ids=["cut off", "no object", "no config", "missing"],
)
def test_a_broken_meta_file_is_said_not_hidden(world: World, meta: str | None, problem: str) -> None:
    file = world.put("chatsft_checkpoints", "d1", 7) / "meta_000007.json"
    if meta is None:
        file.unlink()
    else:
        file.write_text(meta, encoding="utf-8")
    found = {one.key: one for one in discover(world.base, world.base, "classic")}
    assert problem in str(found["sft/d1/7"].problem) and found["sft/d12/2000"].problem is None


def test_odd_files_and_values(world: World) -> None:
    folder = world.put("chatsft_checkpoints", "d1", 7, val_loss="n/a", val_bpb=True)
    (folder / "model_000007_backup.pt").write_bytes(b"x")
    (folder / "optim_000007_rank0.pt").write_bytes(b"x")
    (world.base / "rl_checkpoints").write_text("no folder")
    found = {one.key: one for one in discover(world.base, world.base, "classic")}
    assert found["sft/d1/7"].metric is None
    assert len(found) == 4


def test_a_folder_that_cannot_be_written_down_does_not_break_the_list(world: World) -> None:
    world.put("chatsft_checkpoints", os.fsdecode(b"d\xff1"), 5)
    found = {one.key: one for one in discover(world.base, world.base, "classic")}
    assert "not UTF-8" in str(found["sft/d\\xff1/5"].problem)
    assert json.dumps([one.to_json() for one in found.values()], ensure_ascii=False).encode()


def test_where_a_person_should_look() -> None:
    folders = looked_at(Path("/b"), Path("/e"), "classic")
    assert len(folders) == sum(source.folder is not None for source in SOURCES) == 4
    assert looked_at(Path("/b"), Path("/e"), "experiments") == (Path("/e"),)
