"""The event stream, over the wire: nanochat's own format, whole characters, stopping, two at once."""

from __future__ import annotations

import http.client
import json
import time
from itertools import count

import pytest

from tests.nanochat_web.harness import VOCABULARY, Server, Stream, World, running

SFT = "sft/d12/2000"


def test_the_events_of_nanochats_own_server_in_order(shared: Server) -> None:
    status, headers, data = shared.ask(
        "/chat/completions", {"messages": [{"role": "user", "content": "echo Grüße, 世界 🌍!"}], "temperature": 0.9}
    )
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    assert headers["x-accel-buffering"] == "no" and headers["cache-control"] == "no-store"
    events = [json.loads(line[6:]) for line in data.decode().splitlines() if line.startswith("data: ")]
    tokens = [event for event in events if "token" in event]
    # A byte is a token there: every character beyond ASCII came in pieces and left whole.
    assert [event["token"] for event in tokens] == list("Grüße, 世界 🌍!")
    assert all(event["gpu"] == 0 for event in tokens)
    assert events[-1]["done"] is True and events[-1]["reason"] == "end"
    assert events[0]["model"] == SFT  # the default: the one to talk to
    assert sum("done" in event for event in events) == 1 and events.index(tokens[-1]) == len(events) - 2


def test_which_backend_serves_and_why_comes_before_the_first_token(shared: Server) -> None:
    stream = shared.chat("echo x")
    serving = stream.until(lambda event: "serving" in event)["serving"]
    assert serving["text"].startswith("FlashAttention-3 is served by flash_attn3_sm121")
    assert "on the CPU with its exact PyTorch fallback" in serving["text"]
    assert "nanochat.gpt.flash_attn in nanochat is the module of flash_attn3_sm121" in serving["details"]
    stream.rest()
    assert shared.json("/models")["models"][0]["serving"]["text"] == serving["text"]


def test_tokens_come_one_by_one_and_not_at_the_end(shared: Server) -> None:
    world = shared.world
    world.gate("one", 0)
    stream = shared.chat("gate one")
    stream.until(lambda event: "serving" in event)
    for number in range(1, 6):
        world.gate("one", number)
        assert stream.until(lambda event: "token" in event)["token"] == str(number - 1)
    assert stream.text == "01234"
    world.gate("one", 99)
    assert stream.rest()[-1]["done"] and stream.text == "0123456789"


def test_a_base_model_goes_on_with_the_text(shared: Server) -> None:
    events = shared.chat("Once upon a time~", model="base/d12/5500").rest()
    assert "".join(event.get("token", "") for event in events) == " and so on"


def test_the_oldest_messages_go_where_the_context_is_full(shared: Server) -> None:
    turn = [{"role": "user", "content": "u" * 40}, {"role": "assistant", "content": "a" * 40}]
    messages = [*turn * 4, {"role": "user", "content": "context"}]
    connection, answer = shared._open("POST", "/chat/completions", {"messages": messages, "max_tokens": 20}, {})
    stream = Stream(connection, answer)
    dropped = stream.until(lambda event: "dropped" in event)["dropped"]
    stream.rest()
    # Each pair is 84 tokens, the last message 9, bos and the answer's opening 2: two pairs fit into 256 - 20.
    assert dropped == 4 and stream.text == str(2 * 84 + 9 + 2)


def test_a_message_longer_than_the_context_is_refused_with_numbers(shared: Server) -> None:
    last = shared.chat("x" * 300).rest()[-1]
    assert "302 tokens long and this model reads 256" in last["error"]
    assert shared.chat("echo still here").rest()[-1]["done"]


def test_text_that_no_tokenizer_can_read_is_an_error_not_an_end(shared: Server) -> None:
    body = b'{"messages": [{"role": "user", "content": "echo \\ud800"}], "model": "sft/d12/2000"}'
    status, _, data = shared.ask("/chat/completions", body)
    assert status in (200, 422) and (b"could not answer" in data or b"surrogate" in data)
    assert shared.chat("echo still here").rest()[-1]["done"]


def test_the_longest_answer_is_kept_and_said(shared: Server) -> None:
    stream = shared.chat("echo abcdefgh", max_tokens=3)
    assert stream.rest()[-1]["reason"] == "length" and stream.text == "abc"


def test_an_error_inside_the_model_ends_one_answer_only(shared: Server) -> None:
    pid = shared.pids()[SFT]
    last = shared.chat("raise").rest()[-1]
    assert "the stand-in was told to raise" in last["error"]
    assert shared.chat("echo ok").rest()[-1]["done"] and shared.pids()[SFT] == pid


def test_stop_ends_the_stream_and_frees_the_place(shared: Server) -> None:
    shared.world.gate("stop", 3)
    stream = shared.chat("gate stop")
    name = stream.until(lambda event: "id" in event)["id"]
    stream.until(lambda event: event.get("token") == "2")
    assert shared.json("/stop", {"id": name}) == {"stopped": True}
    assert stream.rest()[-1] == {"done": True, "stopped": True}
    assert shared.json("/stop", {"id": name}) == {"stopped": False}
    shared.world.gate("stop", 99)  # the model was inside a step
    shared.wait_for(lambda: shared.chats() == 0)


def test_a_closed_connection_stops_the_model(shared: Server) -> None:
    shared.world.gate("closed", 2)
    stream = shared.chat("gate closed")
    stream.until(lambda event: event.get("token") == "1")
    assert shared.chats() == 1
    stream.close()
    shared.wait_for(lambda: shared.json("/stats")["streams"] == 0)
    passed = count(3)

    def freed() -> bool:
        shared.world.gate("closed", min(9, next(passed)))  # never to the end: only stopping can free the place
        return shared.chats() == 0

    shared.wait_for(freed)


def test_two_chats_on_one_model_at_once(shared: Server) -> None:
    a, b = shared.chat("echo " + "a" * 60), shared.chat("echo " + "b" * 60)
    pids = shared.pids()
    for stream in (b, a):
        assert stream.rest()[-1]["done"]
    assert (a.text, b.text) == ("a" * 60, "b" * 60) and shared.pids() == pids


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"messages": []}, 400, "no message"),
        ({"messages": [{"role": "user", "content": "x"}], "top_k": 999}, 400, "top_k must be between"),
        ({"messages": [{"role": "user", "content": "x"}], "model": "sft/d12/1"}, 404, "no model 'sft/d12/1'"),
        ({"messages": [{"role": "user", "content": "x"}], "model": "../../etc"}, 404, "no model"),
        ({"messages": "x"}, 422, "messages"),
        (b"{", 422, ""),
        (b'{"messages": "' + b"x" * 600000 + b'"}', 413, "at most 524288"),
    ],
    ids=["empty", "top_k", "unknown model", "a path", "wrong type", "no json", "too long"],
)
def test_bodies_that_are_not_taken(shared: Server, body: object, status: int, words: str) -> None:
    got, _, data = shared.ask("/chat/completions", body)
    assert got == status and words in data.decode()


def test_a_long_body_without_a_length_is_cut_off(shared: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", shared.port, timeout=60)
    chunks = [b'{"messages": "', *[b"x" * 65536] * 12, b'"}']
    headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    connection.request("POST", "/chat/completions", iter(chunks), headers, encode_chunked=True)
    assert connection.getresponse().status in (413, 422)
    connection.close()


def test_foreign_pages_and_names_are_turned_away(shared: Server) -> None:
    body = {"messages": [{"role": "user", "content": "echo x"}]}
    assert shared.ask("/chat/completions", body, headers={"Origin": "https://attacker.example"})[0] == 403
    status, headers, data = shared.ask("/models", headers={"Host": "attacker.example"})
    assert status == 421 and "--allow-host attacker.example" in data.decode()
    assert shared.ask("/stop", b'{"id": "x"}', headers={"Content-Type": "text/plain"})[0] == 415
    assert "script-src 'self'" in headers["content-security-policy"]


def test_the_page_carries_its_headers_and_nothing_inline(shared: Server) -> None:
    status, headers, data = shared.ask("/")
    text = data.decode()
    assert status == 200 and headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in headers["content-security-policy"]
    assert "style=" not in text and "onclick" not in text and "<style" not in text and "http://" not in text
    assert shared.ask("/docs")[0] == shared.ask("/openapi.json")[0] == 404
    assert shared.ask("/static/../serve.py")[0] == 404
    assert shared.json("/health")["status"] == "ok"


def test_half_a_character_at_a_cut_is_left_out(shared: Server) -> None:
    stream = shared.chat("echo ab🌍", max_tokens=4)
    assert stream.rest()[-1]["reason"] == "length" and stream.text == "ab"


def test_a_request_that_is_gone_before_it_began_is_not_answered(world: World) -> None:
    slow = world.nanochat / "nanochat" / "tokenizer.py"
    text = slow.read_text(encoding="utf-8")
    with running(world) as server:
        slow.write_text(f"import time\ntime.sleep(3)\n{text}", encoding="utf-8")
        world.tokenizer(VOCABULARY)  # written anew: it is asked again, and takes its time
        time.sleep(2)
        body = {"messages": [{"role": "user", "content": "echo x"}], "id": "0123456789abcdef", "keep": True}
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("POST", "/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        time.sleep(0.5)
        connection.close()
        assert server.json("/models")["default"] == SFT  # after it
        assert server.ask("/chat/answers/0123456789abcdef")[0] == 404 and server.pids() == {}
