"""What a page is told when its model process has ended: how, its last lines, and what to do. Pure."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LAST_LINES = 12
DOCTOR = "Run `flash-attn3 doctor` on the server: it looks at the GPU, torch and this package, and names the fix."
# A phrase in the last lines -> what to do. The first that fits counts.
REMEDIES: tuple[tuple[str, str], ...] = (
    ("no kernel image is available", f"A CUDA library there was not built for this GPU. {DOCTOR}"),
    (
        "out of memory",
        "The GPU's memory was full. Start the page with --max-models 1, wait for a running evaluation, or choose a "
        "smaller model.",
    ),
    (
        "No module named",
        "nanochat's Python lacks a package. In the checkout: `uv sync --extra gpu`; then send the message again.",
    ),
    (
        "tokenizer.pkl",
        "nanochat found no tokenizer: copy the folder `tokenizer` from where the model was trained into "
        "$NANOCHAT_BASE_DIR.",
    ),
    (
        "get_vocab_size",
        "The tokenizer has another vocabulary than the model: put back the one that the model was trained with.",
    ),
    (
        "key(s) in state_dict",
        "Another version of nanochat made this checkpoint: check out the version that trained it, or train it again.",
    ),
    (
        "PytorchStreamReader",
        "The checkpoint file is damaged: copy it again from where it was trained, or train it again.",
    ),
    (
        "the kernels package is not installed here",
        "nanochat asked for a kernel that is not FlashAttention-3, for which its Python needs the kernels package: in "
        "the checkout, `uv pip install kernels`.",
    ),
)
SIGNALS = {
    signal.SIGKILL: "The system may have ended it for want of memory: `sudo dmesg | tail` on the server says so.",
    signal.SIGSEGV: f"A native library crashed. {DOCTOR}",
    signal.SIGABRT: f"A native library gave up. {DOCTOR}",
    signal.SIGTERM: "Somebody stopped it from outside.",
}


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Complete: one sentence, one remedy, and the last lines that the process wrote."""

    what: str
    hint: str
    log: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"error": self.what, "hint": self.hint, "log": list(self.log)}

    def __str__(self) -> str:
        return f"{self.what} {self.hint}"


def how_it_ended(code: int) -> str:
    """A return code of subprocess in words."""
    if code >= 0:
        return f"with exit code {code}"
    try:
        return f"by signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"by signal {-code}"


def remedy(words: str) -> str | None:
    """What to do about a failure whose words are known."""
    return next((text for phrase, text in REMEDIES if phrase in words), None)


def ending_of(*, code: int, name: str, stage: str, fatal: str | None, log: Sequence[str], reason: str | None) -> Ending:
    """`reason` is ours where we ended it ourselves; `fatal` what the process could still say."""
    last = tuple(log[-LAST_LINES:])
    hint = remedy("\n".join((fatal or "", *log)))
    if reason is not None:
        return Ending(what=f"{reason} ({name}; {stage})", hint=hint or DOCTOR, log=last)
    if hint is None and code < 0:
        hint = SIGNALS.get(signal.Signals(-code)) if -code in set(signal.Signals) else None
    what = f"The process of {name} ended {how_it_ended(code)} while {stage}"
    what += f": {fatal}" if fatal else "."
    return Ending(what=what, hint=hint or DOCTOR, log=last)
