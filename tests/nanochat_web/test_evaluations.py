"""nanochat's evaluation scripts in the background: progress, one at a time, cancelling, results that stay."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from examples.nanochat_web import tasks
from examples.nanochat_web.catalog import Catalog
from examples.nanochat_web.checkout import open_checkout
from examples.nanochat_web.evaluations import Evaluations
from examples.nanochat_web.runs import Store
from tests.nanochat_web.harness import Server, World, alive, running

SFT, BASE = "sft/d12/2000", "base/d12/5500"


def run_of(server: Server, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(run for run in server.json("/evaluations")["runs"] if run["id"] == name)
    return found


def test_from_the_first_problem_to_a_result_that_survives_a_restart(world: World) -> None:
    with running(world) as server:
        world.gate("GSM8K", 0)
        run = server.json("/evaluations", {"model": SFT, "task": "GSM8K", "limit": 4})
        assert run["state"] == "queued" and run["progress"]["total"] == 4
        assert "flash-attn3 run -- " in run["command"] and run["command"].endswith(
            "-m scripts.chat_eval -i sft -a GSM8K --model-tag d12 --step 2000 -x 4"
        )
        other = server.json("/evaluations", {"model": SFT, "task": "ARC-Easy", "limit": 1})
        server.wait_for(lambda: run_of(server, run["id"])["state"] == "running")
        assert run_of(server, other["id"])["state"] == "queued"
        for done in (1, 3):
            world.gate("GSM8K", done)
            server.wait_for(lambda done=done: run_of(server, run["id"])["progress"]["done"] == done)
        assert run_of(server, run["id"])["progress"]["right"] == 1
        assert run_of(server, other["id"])["state"] == "queued"  # one at a time
        world.gate("GSM8K", 4)
        done = server.wait_for(lambda: (one := run_of(server, run["id"]))["state"] == "done" and one)
        assert done["progress"]["result"] == 50.0 and done["ended"] >= done["started"] >= done["created"]
        log = server.ask(f"/evaluations/{run['id']}/log")[2].decode()
        assert "Final: 2/4 (50.00%)" in log and "1/3" not in log  # of a line written over, the last state
        assert "INFO - in colour" in log and "\x1b" not in log
        # The second is under way when the server is killed.
        server.wait_for(lambda: run_of(server, other["id"])["state"] == "running")
        started = server.wait_for(lambda: _descendants(server.process.pid)[1:])
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(30)
        server.wait_for(lambda: not any(map(alive, started)))  # it does not outlive its server
    with running(world) as server:
        states = {one["id"]: one for one in server.json("/evaluations")["runs"]}
        assert states[run["id"]] == done
        assert states[other["id"]]["state"] == "interrupted" and "server ended" in states[other["id"]]["note"]
        server.json(f"/evaluations/{other['id']}/delete", {})
        assert [one["id"] for one in server.json("/evaluations")["runs"]] == [run["id"]]
    assert sorted(path.name for path in (world.state / "evaluations").iterdir()) == [
        f"{run['id']}.json",
        f"{run['id']}.log",
    ]


def test_cancelled_failed_and_refused(world: World) -> None:
    with running(world) as server:
        world.gate("GSM8K", 1)
        run = server.json("/evaluations", {"model": SFT, "task": "GSM8K"})
        waiting = server.json("/evaluations", {"model": SFT, "task": "ARC-Easy"})
        server.wait_for(lambda: run_of(server, run["id"])["progress"]["done"] == 1)
        assert server.ask(f"/evaluations/{run['id']}/delete", {})[0] == 409
        server.json(f"/evaluations/{waiting['id']}/cancel", {})
        server.json(f"/evaluations/{run['id']}/cancel", {})
        server.wait_for(lambda: run_of(server, run["id"])["state"] == "cancelled")
        assert run_of(server, waiting["id"])["state"] == "cancelled"
        world.gate("MMLU", 1)
        failed = server.json("/evaluations", {"model": SFT, "task": "MMLU", "limit": 2})
        core = server.json("/evaluations", {"model": BASE, "task": "CORE"})
        server.wait_for(lambda: run_of(server, core["id"])["state"] == "done")
        assert run_of(server, core["id"])["progress"]["result"] == 0.25
        note = run_of(server, failed["id"])["note"]
        assert note.startswith(
            "The script ended with exit code 1: ConnectionError: Couldn't reach 'cais/mmlu' on the Hub"
        )
        place = world.root / ".cache" / "huggingface" / "datasets" / "cais___mmlu"
        assert f"It needs the data set cais/mmlu, which is not in {place} and could not be downloaded" in note
        assert "Couldn't reach" in server.ask(f"/evaluations/{failed['id']}/log")[2].decode()
        for body, words in (
            ({"model": BASE, "task": "GSM8K"}, "is for chat models"),
            ({"model": SFT, "task": "HumanEval"}, "does not know HumanEval"),
            ({"model": SFT, "task": "x; rm -rf /"}, "there is no task"),
        ):
            status, _, data = server.ask("/evaluations", body)
            assert status == 409 and words in json.loads(data)["detail"]
        assert server.ask("/evaluations", {"model": SFT, "task": "GSM8K", "limit": 0})[0] == 400
        assert server.ask("/evaluations/../../x/log")[0] == 404
        offers = {task["name"]: task for task in server.json(f"/evaluations/tasks?model={SFT}")["tasks"]}
        assert offers["GSM8K"]["refusal"] is None and "does not know" in offers["HumanEval"]["refusal"]


def test_a_stopped_server_takes_its_evaluation_along(world: World) -> None:
    with running(world) as server:
        world.gate("GSM8K", 1)
        run = server.json("/evaluations", {"model": SFT, "task": "GSM8K", "limit": 4})
        server.wait_for(lambda: run_of(server, run["id"])["progress"]["done"] == 1)
        children = _descendants(server.process.pid)
        assert len(children) == 2
    assert not any(map(alive, children))


def _descendants(pid: int) -> list[int]:
    children = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    return children + [one for child in children for one in _descendants(child)]


def test_one_that_a_killed_server_left_behind_is_waited_for(world: World) -> None:
    """Its supervisor was killed with the server; the script itself still holds the lock."""
    with running(world) as server:
        world.gate("GSM8K", 1)
        first = server.json("/evaluations", {"model": SFT, "task": "GSM8K", "limit": 4})
        server.wait_for(lambda: run_of(server, first["id"])["progress"]["done"] == 1)
        supervisor, script = _descendants(server.process.pid)
        for pid in (supervisor, server.process.pid):
            os.kill(pid, signal.SIGKILL)
        server.process.wait(30)
    assert alive(script)
    with running(world) as server:
        second = server.json("/evaluations", {"model": SFT, "task": "ARC-Easy", "limit": 1})
        world.gate("ARC-Easy", 99)
        server.wait_for(lambda: run_of(server, second["id"])["state"] == "running")
        time.sleep(0.5)
        assert run_of(server, second["id"])["progress"]["done"] == 0 and alive(script)
        world.gate("GSM8K", 99)  # the first goes on to its end
        server.wait_for(lambda: run_of(server, second["id"])["state"] == "done")
        assert not alive(script)


@pytest.mark.parametrize(
    ("task", "own", "place"),
    [
        ("GSM8K", True, "/base/task_data/openai--gsm8k"),
        ("GSM8K", False, "/hf/datasets/openai___gsm8k"),
        ("SpellingBee", False, "/base/words_alpha.txt"),
        ("CORE", True, "/base/eval_bundle"),
    ],
)
def test_where_the_data_of_a_task_belongs(task: str, own: bool, place: str) -> None:
    found = tasks.data_place(tasks.BY_NAME[task], base=Path("/base"), own_downloads=own, environ={"HF_HOME": "/hf"})
    assert str(found) == place


def test_a_broken_result_is_said_and_the_rest_is_there(world: World) -> None:
    folder = world.state / "evaluations"
    folder.mkdir(parents=True)
    (folder / "20260101-000000-abcdef.json").write_text('{"id": ', encoding="utf-8")
    (folder / "20260101-000001-abcdef.json").write_text('{"state": "asleep"}', encoding="utf-8")
    with running(world) as server:
        told = server.json("/evaluations")
        assert told["runs"] == [] and len(told["broken"]) == 2
        assert "left out, cannot be read" in server.log and "asleep" in server.log


def test_a_disk_that_cannot_be_written_ends_one_evaluation_only(world: World) -> None:
    folder = world.state / "evaluations"
    with running(world) as server:
        world.gate("GSM8K", 1)
        world.gate("ARC-Easy", 99)
        run = server.json("/evaluations", {"model": SFT, "task": "GSM8K", "limit": 4})
        server.wait_for(lambda: run_of(server, run["id"])["progress"]["done"] == 1)
        folder.rename(world.state / "elsewhere")
        status, _, data = server.ask("/evaluations", {"model": SFT, "task": "ARC-Easy", "limit": 1})
        assert status == 409 and "cannot be written" in json.loads(data)["detail"]
        world.gate("GSM8K", 2)
        server.wait_for(lambda: run_of(server, run["id"])["state"] == "failed")
        assert "could not be kept" in run_of(server, run["id"])["note"]
        (world.state / "elsewhere").rename(folder)
        other = server.json("/evaluations", {"model": SFT, "task": "ARC-Easy", "limit": 1})
        server.wait_for(lambda: run_of(server, other["id"])["state"] == "done")


def test_one_that_is_cancelled_while_it_is_started(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in world.environ().items():
        monkeypatch.setenv(name, value)
    catalog = Catalog(open_checkout(world.nanochat, Path(sys.executable)))
    store = Store(world.state)
    start = asyncio.create_subprocess_exec

    async def ended() -> str:
        evaluations = Evaluations(catalog.checkout, store)
        run = evaluations.add(catalog.checkpoints()[0], "GSM8K", 4)

        async def slowly(*arguments: Any, **more: Any) -> asyncio.subprocess.Process:
            evaluations.cancel(evaluations.runs[run.id])
            return await start(*arguments, **more)

        monkeypatch.setattr(asyncio, "create_subprocess_exec", slowly)
        work = asyncio.ensure_future(evaluations.work())
        for _ in range(500):
            await asyncio.sleep(0.02)
            if evaluations.runs[run.id].over:
                break
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return evaluations.runs[run.id].state

    with store.held():
        assert asyncio.run(ended()) == "cancelled"
