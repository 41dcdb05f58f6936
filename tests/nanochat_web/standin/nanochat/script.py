"""What the stand-in's model says: the order in the last message of the user.

echo TEXT   says TEXT          die      three tokens, then exit code 7     kill     the same by SIGKILL
context     how many tokens it got      silent   two tokens, then nothing more     raise    two tokens, then an error
gate NAME   "0123456789", each character only when the file NAME in $STANDIN_GATES holds a number above it
calc        asks the calculator for 6*7, then goes on            free     what the random weights say, for 40 tokens
history     every token that it got, by its number
"""

import os
import signal
import sys
import time
from pathlib import Path

BOS, USER_START, USER_END, ASSISTANT_START, ASSISTANT_END = 256, 257, 258, 259, 260
PYTHON_START, PYTHON_END, OUTPUT_START, OUTPUT_END = 261, 262, 263, 264
CALCULATION = [PYTHON_START, *b"6*7", PYTHON_END, OUTPUT_START, *b"42", OUTPUT_END, *b" is it"]


def orders(seen: list[int]) -> tuple[str, int]:
    """The last user message, and how many tokens of the answer are there already."""
    if ASSISTANT_START not in seen:  # a base model's plain text
        text = bytes(token for token in seen if token < 256).decode("utf-8", "replace")
        return "echo  and so on", len(text.partition("~")[2])
    answer = len(seen) - 1 - max(i for i, token in enumerate(seen) if token == ASSISTANT_START)
    head = seen[: len(seen) - answer]
    start = max(i for i, token in enumerate(head) if token == USER_START)
    end = max(i for i, token in enumerate(head) if token == USER_END)
    return bytes(head[start + 1 : end]).decode("utf-8", "replace"), answer


def next_token(seen: list[int]) -> int | None:
    if seen[0] != BOS:
        return None  # no conversation: the weights decide
    text, at = orders(seen)
    word, _, rest = text.partition(" ")
    if word == "free":
        return None if at < 40 else ASSISTANT_END
    if word == "gate":
        wait_for(Path(os.environ["STANDIN_GATES"]) / rest, above=at)
        reply = [*b"0123456789"]
    elif word == "echo":
        reply = [*rest.encode()]
    elif word == "calc":
        reply = CALCULATION
    elif word == "context":
        reply = [*str(len(seen) - at).encode()]
    elif word == "history":
        reply = [*" ".join(str(token) for token in seen[: len(seen) - at]).encode()]
    else:
        reply = [*b"Hello from the stand-in."]
    if at >= 2 and word == "silent":
        time.sleep(3600)
    if at >= 2 and word == "raise":
        raise RuntimeError("the stand-in was told to raise")
    if at >= 3 and word == "die":
        print("the last words of the stand-in", file=sys.stderr, flush=True)
        os._exit(7)
    if at >= 3 and word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return reply[at] if at < len(reply) else ASSISTANT_END


def wait_for(file: Path, *, above: int) -> None:
    while not (file.exists() and int(file.read_text() or 0) > above):
        time.sleep(0.002)
