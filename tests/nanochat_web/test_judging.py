"""The pure parts: which requests are taken, what an evaluation's output means, what the page's lines say."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from examples.nanochat_web import chat, tasks
from examples.nanochat_web.chat import ChatBody
from examples.nanochat_web.checkpoints import SOURCES, Checkpoint
from examples.nanochat_web.ending import ending_of
from examples.nanochat_web.guard import MAX_BODY, Access, host_name, judge
from examples.nanochat_web.serving import line

HOME = Access(hosts=frozenset({"127.0.0.1", "localhost", "::1"}))
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost:8000", "localhost"),
        ("[::1]:80", "::1"),
        ("::1", "::1"),
        ("School.Example", "school.example"),
        ("", ""),
    ],
)
def test_host_names(header: str, name: str) -> None:
    assert host_name(header) == name


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {"host": "127.0.0.1:8000"}, None),
        ("GET", "/models", {"host": "attacker.example:8000"}, 421),
        ("GET", "/models", {}, 421),
        ("POST", "/stop", {"host": "localhost:8000", **JSON}, None),
        ("POST", "/stop", {"host": "localhost:8000", "origin": "http://localhost:8000", **JSON}, None),
        ("POST", "/stop", {"host": "localhost:8000", "origin": "http://localhost:9000", **JSON}, 403),
        ("POST", "/stop", {"host": "localhost:8000", "origin": "https://attacker.example", **JSON}, 403),
        ("POST", "/stop", {"host": "localhost:8000", "origin": "null", **JSON}, 403),
        ("POST", "/stop", {"host": "localhost:8000", "content-type": "text/plain"}, 415),
        ("POST", "/stop", {"host": "localhost:8000"}, 415),
        ("POST", "/stop", {"host": "localhost", "content-length": str(MAX_BODY + 1), **JSON}, 413),
    ],
)
def test_who_may_ask(method: str, path: str, headers: dict[str, str], status: int | None) -> None:
    refused = judge(HOME, method=method, path=path, headers=headers)
    assert (refused.status if refused else None) == status


def test_the_access_word() -> None:
    access = Access(hosts=None, token="sesame")
    ask = {"method": "GET", "path": "/models"}
    assert judge(access, **ask, headers={}) is not None
    assert judge(access, **ask, headers={"authorization": "Bearer wrong"}) is not None
    assert judge(access, **ask, headers={"authorization": "Bearer sesame"}) is None
    assert judge(access, method="GET", path="/static/main.js", headers={}) is None


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": []}, "no message"),
        ({"messages": [user("x")] * 501}, "501 messages, at most 500"),
        ({"messages": [user("")]}, "message 1 is empty"),
        ({"messages": [user("x" * 8001)]}, "8001 characters, at most 8000"),
        ({"messages": [user("x" * 8000)] * 5}, "40000 characters, at most 32000"),
        ({"messages": [{"role": "system", "content": "x"}]}, "from 'system'; expected 'user' or 'assistant'"),
        ({"messages": [user("x")], "temperature": 2.1}, "temperature must be between 0.0 and 2.0, found 2.1"),
        ({"messages": [user("x")], "temperature": float("nan")}, "temperature must be between"),
        ({"messages": [user("x")], "top_k": 201}, "top_k must be between 0 and 200"),
        ({"messages": [user("x")], "max_tokens": 0}, "max_tokens must be between 1 and 4096"),
        ({"messages": [user("x" * 8000)] * 4, "temperature": 0, "top_k": 0, "max_tokens": 4096}, None),
    ],
)
def test_the_limits_of_nanochats_own_server(body: dict[str, Any], words: str | None) -> None:
    wrong = chat.judge(ChatBody(**body))
    assert wrong is None if words is None else words in str(wrong)


# -- what the evaluation scripts print


def test_generative_progress_is_read_from_one_line_written_over_and_over() -> None:
    progress = tasks.start(tasks.BY_NAME["GSM8K"], None)
    assert progress.total == 1319
    held = ""
    for chunk in ("\r\x1b[KRank 0 | 1/2 (50.00%)", "\r\x1b[KRank 0 | 1/3 (33.", "33%)"):
        lines, held = tasks.whole_lines(held, chunk)
        progress = tasks.read(progress, [*lines, held])
    assert (progress.right, progress.done, progress.result) == (1, 3, None)
    progress = tasks.read(progress, ["=" * 50, "Final: 300/1319 (22.74%)", "GSM8K accuracy: 22.74%"])
    assert (progress.right, progress.done, progress.result) == (300, 1319, 22.74)


def test_core_counts_its_tasks() -> None:
    progress = tasks.start(tasks.BY_NAME["CORE"], None)
    one = "Evaluating: jeopardy (10-shot, type: language_modeling)... accuracy: 0.1 | centered: -0.1000 | time: 2.5s"
    progress = tasks.read(progress, [one.replace("0.1 |", "0.1234 |"), "Step 3/4 (75.00%)"])
    assert (progress.done, progress.total, progress.result) == (1, 22, None)
    assert tasks.read(progress, ["CORE metric: 0.2134"]).result == 0.2134
    assert tasks.read(progress, ["CORE                               ,           , 0.213400  "]).result == 0.2134


def checkpoint(source: str) -> Checkpoint:
    kind = next(one for one in SOURCES if one.name == source)
    return Checkpoint(source=kind, tag="d12", step=20, size=1, modified=0.0)


def test_commands_follow_what_the_script_knows() -> None:
    flags = "'--model-tag' \"--step\" 'GSM8K'"
    script = tasks.Script(name="chat_eval", text=flags)
    gsm, core = tasks.BY_NAME["GSM8K"], tasks.BY_NAME["CORE"]
    assert tasks.refusal(gsm, script, checkpoint("sft")) is None
    assert tasks.arguments(gsm, script, checkpoint("rl"), 5) == (
        *("-m", "scripts.chat_eval", "-i", "rl", "-a", "GSM8K", "--model-tag", "d12", "--step", "20", "-x", "5"),
    )
    assert "does not know MMLU" in str(tasks.refusal(tasks.BY_NAME["MMLU"], script, checkpoint("sft")))
    assert "for chat models" in str(tasks.refusal(gsm, script, checkpoint("base")))
    old = tasks.Script(name="base_eval", text="'--max-per-task'")  # January 2026
    assert "always takes the largest" in str(tasks.refusal(core, old, checkpoint("base")))
    assert "no scripts/base_eval.py" in str(tasks.refusal(core, None, checkpoint("base")))
    new = tasks.Script(name="base_eval", text="'--eval' '--model-tag' '--step'")
    assert tasks.arguments(core, new, checkpoint("base"), None)[2:4] == ("--eval", "core")


# -- the lines of the page

NATIVE = {
    "holders": ["nanochat.gpt.flash_attn"],
    "package": "3.0.0",
    "backend": "native",
    "family": "sm8x",
    "code": "sm_121",
    "where": "NVIDIA GB10",
    "capability": [12, 1],
    "refusals": [],
}


@pytest.mark.parametrize(
    ("change", "tone", "words"),
    [
        ({}, "good", "on NVIDIA GB10 (capability 12.1) with its own compiled kernels (family sm8x, machine code"),
        ({"holders": []}, "plain", "nanochat did not ask for FlashAttention-3"),
        ({"backend": "sdpa", "refusals": [["native", "it failed"]]}, "warn", "not with compiled kernels: it failed."),
        ({"backend": "sdpa", "forced": "sdpa"}, "plain", "because it was asked for by name"),
        ({"backend": None, "forced": "native", "refusals": [["native", "none"]]}, "warn", "native was asked for"),
        ({"error": "cannot be imported"}, "warn", "is not known"),
        (
            {"backend": "sdpa", "where": "cpu", "capability": None},
            "plain",
            "on the CPU with its exact PyTorch fallback",
        ),
    ],
    ids=["native", "not asked", "refused", "forced", "forced and refused", "unknown", "cpu"],
)
def test_who_serves_and_why(change: dict[str, Any], tone: str, words: str) -> None:
    told = line({**NATIVE, **change}, "cuda")
    assert told.tone == tone and words in told.text


@pytest.mark.parametrize(
    ("code", "log", "what", "hint"),
    [
        (7, [], "ended with exit code 7 while answering", "flash-attn3 doctor"),
        (-signal.SIGKILL, [], "by signal 9 (SIGKILL)", "want of memory"),
        (-signal.SIGSEGV, [], "(SIGSEGV)", "native library crashed"),
        (1, ["RuntimeError: CUDA error: no kernel image is available"], "exit code 1", "not built for this GPU"),
        (1, ["torch.OutOfMemoryError: CUDA out of memory."], "exit code 1", "--max-models 1"),
        (1, ["ModuleNotFoundError: No module named 'tiktoken'"], "exit code 1", "uv sync"),
    ],
)
def test_how_a_model_ended(code: int, log: list[str], what: str, hint: str) -> None:
    told = ending_of(code=code, name="d12", stage="answering", fatal=None, log=log, reason=None)
    assert what in told.what and hint in told.hint and list(told.log) == log
