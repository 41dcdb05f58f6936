"""The page with real checkouts of nanochat, where this machine has them (real.py): January 2026 and the newest."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nanochat_web.harness import Server, Stream, World, running
from tests.nanochat_web.real import checkout_of, python, untrained

pytestmark = pytest.mark.slow
NAMES = ("january", "newest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Real(World):
    """The folders of a world, with a real checkout in place of the stand-in."""

    checkout: Path

    @property
    def nanochat(self) -> Path:
        return self.checkout


@pytest.fixture(scope="module", params=NAMES)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    world = Real(root=tmp_path_factory.mktemp(request.param), checkout=checkout_of(request.param))
    (world.root / "gates").mkdir()
    for stage in ("sft", "base"):
        untrained(world.nanochat, python(), world.base, depth=2, stage=stage)
    with running(world, "--python", str(python()), "--device", "cpu") as server:
        yield server


def ask(server: Server, **body: object) -> Stream:
    connection, answer = server._open("POST", "/chat/completions", body, {})
    assert answer.status == 200, answer.read()
    return Stream(connection, answer)


def test_models_are_found_and_answer(real: Server) -> None:
    models = real.json("/models")
    assert [(model["id"], model["problem"]) for model in models["models"]] == [("sft/d2/0", None), ("base/d2/0", None)]
    message = [{"role": "user", "content": "def main"}]
    first = ask(real, messages=message, max_tokens=24, seed=7)
    last = first.rest()[-1]
    assert last["done"] and (last["tokens"] == 24 or last["reason"] == "end")
    serving = next(event["serving"] for event in first.events if "serving" in event)
    january = (real.world.nanochat / "scripts" / "chat_web.py").exists()
    assert ("FlashAttention-3 is served by" in serving["text"]) is january  # the newest asks only on a GPU
    assert any("decoded as one batch" in line for line in serving["details"]) is january
    again = ask(real, messages=message, max_tokens=24, seed=7)
    again.rest()
    assert again.text == first.text
    base = ask(real, messages=message, model="base/d2/0", max_tokens=8, temperature=0)
    assert base.rest()[-1]["done"]


def test_greedy_answers_are_the_same_when_cut_and_continued(real: Server) -> None:
    message = {"role": "user", "content": "import torch"}
    whole = ask(real, messages=[message], max_tokens=20, temperature=0)
    whole.rest()
    half = ask(real, messages=[message], max_tokens=10, temperature=0)
    half.rest()
    assert whole.text.startswith(half.text) and len(half.text) < len(whole.text)
    rest = ask(
        real,
        messages=[message, {"role": "assistant", "content": half.text}],
        max_tokens=10,
        temperature=0,
        extend=True,
    )
    assert rest.rest()[-1]["done"]


def test_every_failure_of_the_trial_has_its_own_remedy(real: Server) -> None:
    base = real.world.base
    folder = base / "chatsft_checkpoints" / "d2"
    model = folder / "model_000000.pt"

    def problem(key: str) -> str:
        problems = [one["problem"] for one in real.json("/models")["models"] if one["id"] == key]
        return " ".join(f"{one['what']}. {one['remedy']}" for one in problems if one)

    for step in (1, 2):
        shutil.copy(model, folder / f"model_{step:06d}.pt")
        shutil.copy(folder / "meta_000000.json", folder / f"meta_{step:06d}.json")
    (folder / "model_000001.pt").write_bytes(model.read_bytes()[:-100])
    meta = json.loads((folder / "meta_000002.json").read_text())
    meta["model_config"]["vocab_size"] += 64
    (folder / "meta_000002.json").write_text(json.dumps(meta))
    shutil.copytree(folder, base / "mid_checkpoints" / "d2")
    assert "model_000001.pt is incomplete" in real.wait_for(lambda: problem("sft/d2/1"))
    assert "Put the tokenizer that it was trained with back" in problem("sft/d2/2")
    january = (real.world.nanochat / "scripts" / "chat_web.py").exists()
    mid = problem("mid/d2/0")
    assert mid == "" if january else "this nanochat does not load mid models (it knows base, sft, rl)" in mid
    (base / "tokenizer").rename(base / "put-away")
    assert "its tokenizer is not there" in real.wait_for(lambda: problem("sft/d2/0"))
    (base / "put-away").rename(base / "tokenizer")
    real.wait_for(lambda: problem("sft/d2/0") == "")
    for step in (1, 2):
        (folder / f"model_{step:06d}.pt").unlink()
    shutil.rmtree(base / "mid_checkpoints")


def test_a_model_of_the_other_nanochat_is_told_from_ones_own(real: Server) -> None:
    january = (real.world.nanochat / "scripts" / "chat_web.py").exists()
    other = checkout_of("newest" if january else "january")
    folder = real.world.root / "other"
    untrained(other, python(), folder, depth=2)
    shutil.copytree(folder / "chatsft_checkpoints" / "d2", real.world.base / "chatsft_checkpoints" / "d3")
    found = real.wait_for(lambda: [one for one in real.json("/models")["models"] if one["id"] == "sft/d3/0"])[0]
    what = found["problem"]["what"]
    assert what.startswith("another version of nanochat made it: it " + ("has" if january else "lacks"))
    assert real.json("/models")["default"] == "sft/d2/0"
    shutil.rmtree(real.world.base / "chatsft_checkpoints" / "d3")
