"""The line on the page that says which backend serves a model's attention, and why. Pure: facts in, words out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Tone = Literal["good", "plain", "warn"]
BACKENDS = {
    "native": "its own compiled kernels",
    "sdpa": "its exact PyTorch fallback",
    "flex": "torch's FlexAttention",
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One sentence, and what unfolds below it."""

    text: str
    details: tuple[str, ...]
    tone: Tone

    def to_json(self) -> dict[str, Any]:
        return {"text": self.text, "details": list(self.details), "tone": self.tone}


def _where(facts: Mapping[str, Any]) -> str:
    name = str(facts.get("where") or "this device")
    capability = facts.get("capability")
    return (
        "the CPU" if name == "cpu" else f"{name} (capability {capability[0]}.{capability[1]})" if capability else name
    )


def _details(facts: Mapping[str, Any], device: str, decoding: str) -> tuple[str, ...]:
    holders = facts.get("holders") or []
    lines = [f"{name} in nanochat is the module of flash_attn3_sm121" for name in holders]
    if facts.get("path"):
        lines.append(f"flash_attn3_sm121 {facts.get('package')} from {facts['path']}")
    lines.append(f"the model is on {device}")
    if decoding:
        lines.append(decoding)
    lines += [f"not {backend}: {reason}" for backend, reason in facts.get("refusals") or []]
    return tuple(lines)


def line(facts: Mapping[str, Any], device: str, decoding: str = "") -> Line:
    """`facts` is the `attention` of the model process, `device` where its model is, `decoding` how it decodes."""
    details = _details(facts, device, decoding)
    if facts.get("error"):
        return Line(
            text="Which backend serves attention is not known: flash_attn3_sm121 could not be asked.",
            details=(str(facts["error"]), *details),
            tone="warn",
        )
    if not facts.get("holders"):
        return Line(
            text="PyTorch's own attention serves this model: nanochat did not ask for FlashAttention-3 on this device.",
            details=(
                "newer nanochat asks the kernels library only where it finds a GPU that it knows; this is its choice",
                *details,
            ),
            tone="plain",
        )
    version, where = facts.get("package"), _where(facts)
    if facts.get("backend") is None:
        reasons = "; ".join(f"{backend}: {reason}" for backend, reason in facts.get("refusals") or [])
        return Line(
            text=f"Attention cannot be served on {where}: {facts.get('forced')} was asked for and refuses ({reasons}).",
            details=details,
            tone="warn",
        )
    backend = str(facts["backend"])
    words = f"FlashAttention-3 is served by flash_attn3_sm121 {version} on {where} with "
    if backend == "native":
        words += f"{BACKENDS['native']} (family {facts.get('family')}, machine code {facts.get('code')})."
        return Line(text=words, details=details, tone="good")
    words += BACKENDS.get(backend, backend)
    if facts.get("forced"):
        return Line(text=f"{words}, because it was asked for by name.", details=details, tone="plain")
    reason = next((why for name, why in facts.get("refusals") or [] if name == "native"), None)
    if where == "the CPU":
        return Line(text=f"{words}: compiled kernels need a GPU.", details=details, tone="plain")
    return Line(
        text=f"{words}, not with compiled kernels: {reason}." if reason else f"{words}.",
        details=details,
        tone="warn",
    )
