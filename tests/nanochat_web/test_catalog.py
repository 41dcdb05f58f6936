"""What cannot be loaded is known when models are listed, with the cause and the next step; and new ones are found."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.nanochat_web import catalog as catalog_module
from examples.nanochat_web.catalog import Catalog
from examples.nanochat_web.checkout import open_checkout
from examples.nanochat_web.nanochat_code import read_code
from tests.nanochat_web.harness import CONFIG, STANDIN, World, save
from tests.nanochat_web.real import checkout_of

Made = Callable[[], Catalog]


@pytest.fixture
def made(world: World, monkeypatch: pytest.MonkeyPatch) -> Made:
    for name, value in world.environ().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(catalog_module, "FRESH", 0.0)
    return lambda: Catalog(open_checkout(world.nanochat, Path(sys.executable)))


def problem(catalog: Catalog, key: str) -> str:
    return str(next(one.problem for one in catalog.checkpoints() if one.key == key))


SFT = "sft/d12/2000"


def test_what_is_whole_has_no_problem(made: Made) -> None:
    assert [one.problem for one in made().checkpoints()] == [None, None, None]


@pytest.mark.parametrize("end", [0, 1, 500, 123455])
def test_a_file_that_was_cut_off(made: Made, world: World, end: int) -> None:
    file = world.base / "chatsft_checkpoints" / "d12" / "model_002000.pt"
    file.write_bytes(file.read_bytes()[:end])
    told = problem(made(), SFT)
    assert "model_002000.pt is incomplete (it is perhaps still being written)" in told
    assert ("it is empty" if end == 0 else f"it ends after {end:,} bytes") in told
    assert "Copy it again" in told


def test_a_missing_tokenizer_and_one_that_was_trained_again(made: Made, world: World) -> None:
    catalog = made()
    file = world.base / "tokenizer" / "tokenizer.pkl"
    file.unlink()
    assert f"its tokenizer is not there: {world.base / 'tokenizer'}. Copy the folder" in problem(catalog, SFT)
    world.tokenizer(4096)
    told = problem(catalog, SFT)
    assert (
        "a vocabulary of 265 entries" in told and "has 4,096. Put the tokenizer that it was trained with back" in told
    )
    world.tokenizer(265)
    assert problem(catalog, SFT) == "None"
    file.write_text("no number", encoding="ascii")
    assert "cannot be loaded: ValueError: invalid literal" in problem(catalog, SFT)


def test_a_stage_that_this_nanochat_has_not(made: Made, world: World) -> None:
    manager = world.nanochat / "nanochat" / "checkpoint_manager.py"
    manager.write_text(manager.read_text().replace('    "mid": "mid_checkpoints",\n', ""))
    world.put("mid_checkpoints", "d12", 811)
    told = problem(made(), "mid/d12/811")
    assert "this nanochat does not load mid models (it knows base, sft, rl)" in told and "git log" in told


def test_a_model_of_another_nanochat(made: Made, world: World) -> None:
    (world.nanochat / "nanochat" / "gpt.py").write_bytes((STANDIN / "nanochat" / "gpt.py").read_bytes())
    world.put("chatsft_checkpoints", "d1", 1)
    names = ("embed.weight", "to_kv.weight", "smear_gate.weight", "value_embeds.1.weight")
    save(world.base / "chatsft_checkpoints" / "d1" / "model_000001.pt", names=names)
    told = problem(made(), "sft/d1/1")
    assert "another version of nanochat made it: it lacks head; it has smear_gate, value_embeds, unknown here" in told
    assert "git checkout" in told
    meta = {"model_config": {**CONFIG, "window_pattern": "SSSL"}}
    (world.base / "chatsft_checkpoints" / "d4" / "meta_000300.json").write_text(json.dumps(meta), encoding="utf-8")
    assert "it has window_pattern, unknown here" in problem(made(), "sft/d4/300")
    assert problem(made(), SFT) == "None"


def test_nothing_in_a_checkpoint_is_run(made: Made, world: World) -> None:
    import pickle
    import zipfile

    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, (f"open({str(world.root / 'harm')!r}, 'w')",)

    with zipfile.ZipFile(world.base / "chatsft_checkpoints" / "d12" / "model_002000.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"embed.weight": Harm()}))
    made().checkpoints()
    assert not (world.root / "harm").exists()


@pytest.mark.parametrize("given", ["relative", "home"])
def test_a_relative_folder_and_one_with_a_tilde(
    made: Made, world: World, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.chdir(world.root)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "base" if given == "relative" else "~/base")
    catalog = made()
    assert catalog.checkout.base == world.base and problem(catalog, SFT) == "None"
    checkpoint = catalog.checkpoints()[0]
    assert catalog.checkout.environment(checkpoint, {})["NANOCHAT_BASE_DIR"] == str(world.base)


def test_a_layout_that_nobody_knows_is_said(made: Made, world: World) -> None:
    (world.nanochat / "nanochat" / "checkpoint_manager.py").write_text("def load_model(): ...\n")
    with pytest.raises(Exception, match="keeps its checkpoints in a way that this page does not know"):
        made()


@pytest.mark.parametrize("name", ["january", "newest"])
def test_the_real_source_is_understood(name: str) -> None:
    code = read_code(checkout_of(name))
    assert code is not None and code.layout == "classic"
    assert {"transformer", "wte", "c_q", "c_fc", "lm_head", "resid_lambdas"} <= code.parts
    assert ("mid" in code.folders, "smear_gate" in code.parts) == (name == "january", name == "newest")
    assert code.supplied >= {"resid_lambdas", "x0_lambdas"}
    assert "n_layer" in code.fields and ("window_pattern" in code.fields) == (name == "newest")
