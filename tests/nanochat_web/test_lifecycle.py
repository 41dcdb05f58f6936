"""Model processes that die, say nothing, do not fit, are not needed; the line; the end of the server."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.nanochat_web.harness import Server, World, alive, running

SFT, SMALL, BASE = "sft/d12/2000", "sft/d4/300", "base/d12/5500"


def test_a_process_that_dies_says_how_and_the_next_message_starts_another(world: World) -> None:
    with running(world) as server:
        stream = server.chat("die")
        last = stream.rest()[-1]
        assert stream.text == "Hel"
        assert last["error"] == "The process of d12 · fine-tuned · step 2,000 ended with exit code 7 while answering."
        assert last["log"][-1] == "the last words of the stand-in" and "flash-attn3 doctor" in last["hint"]
        # Two chats on it: both are told.
        world.gate("held", 1)
        held = server.chat("gate held")
        held.until(lambda event: event.get("token") == "0")
        pid = server.pids()[SFT]
        os.kill(pid, signal.SIGKILL)
        last = held.rest()[-1]
        assert "by signal 9 (SIGKILL)" in last["error"] and "dmesg" in last["hint"]
        assert server.chat("echo again").rest()[-1]["done"] and server.pids()[SFT] != pid


def test_a_process_that_cannot_load_says_why_and_is_not_started_for_ever(world: World) -> None:
    world.put("chatsft_checkpoints", "d5", 1, standin="die")
    with running(world) as server:
        both = [server.chat("echo x", model="sft/d5/1") for _ in range(2)]
        for stream in both:
            last = stream.rest()[-1]
            assert "exit code 9 while loading d5, step 1" in last["error"]
            assert "not built for this GPU" in last["hint"] and "no kernel image" in last["log"][-1]
        assert server.pids() == {}


def test_silence_is_ended_with_a_message(world: World) -> None:
    world.put("chatsft_checkpoints", "d5", 1, standin="silent")
    with running(world, "--silence", "3", "--loading", "6") as server:
        stream = server.chat("silent")
        last = stream.rest()[-1]
        assert stream.text == "He" and "The model said nothing for 3 s" in last["error"]
        last = server.chat("echo x", model="sft/d5/1").rest()
        assert "was not ready 6 s after its last sign of progress" in last[-1]["error"]
        stages = {event["stage"] for event in last if event.get("status") == "loading"}
        assert "loading d5, step 1, onto cpu" in stages
        assert server.pids() == {}


def test_one_place_in_memory_goes_to_whoever_waits_longest(world: World) -> None:
    """Student 1 streams from one model, 2 asks for another, 3 for the first: this stopped a whole class once."""
    limits = ("--max-models", "1", "--slots", "1", "--queue", "2", "--idle", "1")
    with running(world, *limits) as server:
        world.gate("first", 1)
        first = server.chat("gate first", model=SFT)
        first.until(lambda event: event.get("token") == "0")
        world.gate("second", 1)
        second = server.chat("gate second", model=SMALL)
        room = {"status": "queued", "for": "room", "model": "d4", "ahead": 0, "on": {"model": "d12", "chats": 1}}
        assert second.until(lambda event: "status" in event) == room
        third = server.chat("echo third", model=SFT)
        told = third.until(lambda event: "status" in event)
        assert told == {"status": "queued", "for": "room", "model": "d12", "ahead": 1, "on": None}
        status, headers, data = server.ask(
            "/chat/completions", {"messages": [{"role": "user", "content": "echo x"}], "model": SFT}
        )
        told = json.loads(data)
        assert status == 503 and headers["retry-after"] == "3" and told["ahead"] == 2
        assert "2 messages are waiting ahead of yours" in told["detail"]
        old = server.pids()[SFT]
        world.gate("first", 99)
        assert first.rest()[-1]["done"]
        second.until(lambda event: event.get("token") == "0")
        assert set(server.pids()) == {SMALL} and not alive(old)
        world.gate("second", 99)
        assert second.rest()[-1]["done"] and second.text == "0123456789"
        assert third.rest()[-1]["done"] and third.text == "third"
        server.wait_for(lambda: server.pids() == {})  # --idle 1


def test_three_models_in_two_places(world: World) -> None:
    with running(world, "--max-models", "2", "--slots", "2", "--idle", "900") as server:
        world.gate("busy", 1)
        busy = [server.chat("gate busy", model=model) for model in (SFT, SFT, SMALL, SMALL)]
        for first in (
            busy[0],
            busy[2],
        ):  # a closed gate holds its whole process: the second of each has its place by now
            first.until(lambda event: event.get("token") == "0")
        third = server.chat("third~", model=BASE)
        assert third.until(lambda event: "status" in event)["for"] == "room"
        fourth = server.chat("echo fourth", model=SFT)
        fifth = server.chat("echo fifth", model=SMALL)
        world.gate("busy", 99)
        for stream in (*busy, third, fourth, fifth):
            assert stream.rest()[-1]["done"]


def test_one_that_gives_up_while_it_waits_leaves_the_line(world: World) -> None:
    with running(world, "--slots", "1") as server:
        world.gate("first", 1)
        first = server.chat("gate first", model=SFT)
        first.until(lambda event: event.get("token") == "0")
        second = server.chat("echo x", model=SFT)
        told = second.until(lambda event: "status" in event)
        assert told == {"status": "queued", "for": "place", "model": "d12", "ahead": 0}
        second.close()
        server.wait_for(lambda: server.json("/stats")["waiting"] == 0)
        world.gate("first", 99)
        assert first.rest()[-1]["done"]


def test_two_models_are_there_at_once_where_they_may(world: World) -> None:
    with running(world, "--max-models", "2") as server:
        world.gate("a", 1)
        a = server.chat("gate a", model=SFT)
        a.until(lambda event: event.get("token") == "0")
        assert server.chat("echo b", model=SMALL).rest()[-1]["done"]
        assert set(server.pids()) == {SFT, SMALL}
        third = server.chat("x~", model=BASE)  # the idle one has to go for it, not the busy one
        assert third.rest()[-1]["done"] and set(server.pids()) == {SFT, BASE}
        world.gate("a", 99)
        assert a.rest()[-1]["done"]


def test_stopped_while_it_waits_for_the_model(world: World) -> None:
    world.put("chatsft_checkpoints", "d5", 1, standin="silent")
    with running(world) as server:
        stream = server.chat("echo x", model="sft/d5/1")
        name = stream.until(lambda event: "id" in event)["id"]
        stream.until(lambda event: event.get("status") == "loading")
        server.json("/stop", {"id": name})
        assert stream.rest()[-1] == {"done": True, "stopped": True}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_no_process_outlives_the_server(world: World, number: signal.Signals) -> None:
    with running(world) as server:
        world.gate("end", 1)
        stream = server.chat("gate end")
        stream.until(lambda event: event.get("token") == "0")
        pid = server.pids()[SFT]
        server.process.send_signal(number)
        if number != signal.SIGKILL:  # an open answer is told, not left hanging
            last = stream.rest()[-1]
            assert "The server was stopped" in last["error"]
        else:
            stream.close()
        server.wait_for(lambda: not alive(pid))
        server.process.wait(30)
    assert "Traceback" not in server.log and "Exception" not in server.log


def test_the_access_word_over_the_wire(world: World) -> None:
    with running(world, env={"NANOCHAT_WEB_TOKEN": "sesame"}) as server:
        assert server.url.endswith("/#token=sesame")
        assert server.ask("/")[0] == server.ask("/static/main.js")[0] == 200
        assert server.ask("/models")[0] == 401
        assert server.ask("/models", headers={"Authorization": "Bearer sesame"})[0] == 200


def test_listening_to_a_network_is_said_in_plain_words(world: World) -> None:
    with running(world, "--host", "0.0.0.0", "--allow-host", "school.example") as server:
        server.wait_for(lambda: "EVERYBODY who can reach this machine" in server.log)
        assert server.ask("/models", headers={"Host": "school.example"})[0] == 200
        assert server.ask("/models", headers={"Host": "other.example"})[0] == 421


def test_new_checkpoints_appear_by_themselves(shared: Server) -> None:
    before = {model["id"] for model in shared.json("/models")["models"]}
    shared.world.put("mid_checkpoints", "d99", 7, val_bpb=0.5)
    new = shared.wait_for(lambda: {model["id"] for model in shared.json("/models")["models"]} - before)
    assert new == {"mid/d99/7"}


def test_a_checkpoint_that_was_trained_again_is_loaded_again(world: World) -> None:
    with running(world) as server:
        assert server.chat("echo x").rest()[-1]["done"]
        old = server.pids()[SFT]
        world.put("chatsft_checkpoints", "d12", 2000, size=123457, val_loss=1.1)
        server.wait_for(lambda: server.json("/models")["models"][0]["bytes"] == 123457)
        assert server.json("/models")["models"][0]["state"] is None  # what is in memory is another
        world.gate("held", 1)
        held = server.chat("gate held")
        held.until(lambda event: event.get("token") == "0")
        assert server.json("/models")["models"][0]["state"] == "ready"
        assert [model["pid"] for model in server.json("/stats")["models"] if model["chats"]] != [old]
        world.gate("held", 99)
        assert held.rest()[-1]["done"]
