"""nanochat's evaluation scripts in the background: progress, one at a time, cancelling, results that stay."""

from __future__ import annotations

import json
import signal
from typing import Any

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
        # The second is under way when the server is killed.
        server.wait_for(lambda: run_of(server, other["id"])["state"] == "running")
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(30)
    world.gate("ARC-Easy", 99)  # whatever was left of it ends
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
        assert run_of(server, failed["id"])["note"] == "The script ended with exit code 1: the stand-in has no MMLU"
        assert "the stand-in has no MMLU" in server.ask(f"/evaluations/{failed['id']}/log")[2].decode()
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
        children = [int(pid) for pid in _children(server.process.pid)]
        assert len(children) == 1
    assert not alive(children[0])


def _children(pid: int) -> list[str]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:  # noqa: PTH123
        return file.read().split()


def test_a_broken_result_is_said_and_the_rest_is_there(world: World) -> None:
    folder = world.state / "evaluations"
    folder.mkdir(parents=True)
    (folder / "20260101-000000-abcdef.json").write_text('{"id": ', encoding="utf-8")
    (folder / "20260101-000001-abcdef.json").write_text('{"state": "asleep"}', encoding="utf-8")
    with running(world) as server:
        told = server.json("/evaluations")
        assert told["runs"] == [] and len(told["broken"]) == 2
        assert "left out, cannot be read" in server.log and "asleep" in server.log
