"""One chat request: judged, and made into the order for a model process. Pure; answers.py carries it out."""

from __future__ import annotations

import random
import re
from typing import Any

from pydantic import BaseModel

# nanochat's own server has these limits; a client of one may talk to the other.
MAX_MESSAGES = 500
MAX_MESSAGE = 8000
MAX_CONVERSATION = 32000
TEMPERATURE = (0.0, 2.0)
TOP_K = (0, 200)
MAX_TOKENS = (1, 4096)
DEFAULTS = {"temperature": 0.8, "top_k": 50, "max_tokens": 512}
NAME = re.compile(r"[0-9a-f]{16}")


class Message(BaseModel):
    role: str
    content: str


class ChatBody(BaseModel):
    """The request of nanochat's own server; what follows `top_k` is ours, and may be left out.

    Attributes:
        id: the name of the answer, for `/stop` and `/chat/answers/<id>`; 16 hexadecimal digits.
        keep: finish the answer even where the connection is closed, and keep it for a while.
        extend: the last message is an answer that was cut off, to be continued.
    """

    messages: list[Message]
    temperature: float | None = None
    max_tokens: int | None = None
    top_k: int | None = None
    model: str | None = None
    seed: int | None = None
    id: str | None = None
    keep: bool = False
    extend: bool = False


def _outside(name: str, value: float | None, limits: tuple[float, float]) -> str | None:
    if value is None or limits[0] <= value <= limits[1]:
        return None
    return f"{name} must be between {limits[0]} and {limits[1]}, found {value}"


def judge(body: ChatBody) -> str | None:
    """What is wrong with a request, or None."""
    if not body.messages:
        return "there is no message: at least one is needed"
    if len(body.messages) > MAX_MESSAGES:
        return f"{len(body.messages)} messages, at most {MAX_MESSAGES} are taken: start a new conversation"
    for number, message in enumerate(body.messages, start=1):
        if message.role not in ("user", "assistant"):
            return f"message {number} is from {message.role!r}; expected 'user' or 'assistant'"
        if not message.content:
            return f"message {number} is empty"
        if len(message.content) > MAX_MESSAGE:
            return f"message {number} has {len(message.content)} characters, at most {MAX_MESSAGE} are taken"
    if body.extend != (body.messages[-1].role == "assistant"):
        return "the last message must be from 'user', or from 'assistant' with \"extend\": true"
    if body.id is not None and not NAME.fullmatch(body.id):
        return f"id must be 16 hexadecimal digits, found {body.id[:40]!r}"
    total = sum(len(message.content) for message in body.messages)
    if total > MAX_CONVERSATION:
        return f"the conversation has {total} characters, at most {MAX_CONVERSATION} are taken: start a new one"
    return (
        _outside("temperature", body.temperature, TEMPERATURE)
        or _outside("top_k", body.top_k, TOP_K)
        or _outside("max_tokens", body.max_tokens, MAX_TOKENS)
    )


def order(body: ChatBody) -> dict[str, Any]:
    """What the model process is told."""
    given = {name: getattr(body, name) for name in DEFAULTS}
    return {
        "messages": [{"role": message.role, "content": message.content} for message in body.messages],
        **{name: DEFAULTS[name] if value is None else value for name, value in given.items()},
        "extend": body.extend,
        "seed": random.randrange(2**31) if body.seed is None else body.seed,
    }
