"""`explain`: which backend would serve a call, and why each other one would not. Nothing is run or loaded.

explain(q, k, v, causal=True, window_size=(1024, 0))        # for these tensors
explain(capability=(12, 1), dtype="bf16", head_dim=128)      # for a machine one does not have
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flash_attn3_sm121.arch import capability as capability_row
from flash_attn3_sm121.call.facts import FEATURE_WORDS, CallFacts, DeviceFacts, device_named
from flash_attn3_sm121.dispatch.decide import Decision
from flash_attn3_sm121.errors import UsageError, pip_command
from flash_attn3_sm121.native.location import locate

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from flash_attn3_sm121.dispatch.engine import Engine

# Keywords of the public functions -> fields of ForwardArgs, where they differ.
_FIELDS = {
    "cache_seqlens": "seqused_k",
    "cache_batch_idx": "kv_batch_idx",
    "cache_leftpad": "leftpad_k",
    "rotary_seqlens": "seqlens_rotary",
}
_FORWARD_ONLY = frozenset({"paged", "append", "batch_idx", "rotary", "qv"})


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The decisions for one call. `backward` is None where a call has no gradient."""

    device: DeviceFacts
    call: CallFacts
    forward: Decision
    backward: Decision | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = self.device.name or self.device.type
        if self.device.capability is not None:
            where += f", capability {self.device.capability[0]}.{self.device.capability[1]}"
        asked = ", ".join(FEATURE_WORDS[word] for word in sorted(self.call.features)) or "nothing special"
        dims = f"{self.call.head_dim}"
        if self.call.head_dim_v != self.call.head_dim:
            dims += f" (values {self.call.head_dim_v})"
        types = self.call.dtype
        if self.call.dtype_kv != types:
            types += f" (keys and values {self.call.dtype_kv})"
        lines = [f"device: {where}", f"call: {types}, head dim {dims}, {asked}"]
        lines += ["forward", *_indented(self.forward)]
        if self.backward is not None:
            lines += ["backward", *_indented(self.backward)]
        return "\n".join((*lines, *(f"note: {note}" for note in self.notes)))

    __repr__ = __str__


def _indented(decision: Decision) -> list[str]:
    return [f"  {line}" for line in str(decision).splitlines()]


def _from_tensors(q: Tensor, k: Tensor, v: Tensor, given: dict[str, Any]) -> CallFacts:
    from flash_attn3_sm121.api.attend import scale_of, window_of
    from flash_attn3_sm121.call.arguments import ForwardArgs
    from flash_attn3_sm121.call.facts import facts_of
    from flash_attn3_sm121.call.validation import check_forward

    left, right = window_of(given.pop("window_size", (-1, -1)))
    fields = {_FIELDS.get(name, name): value for name, value in given.items()}
    scale = scale_of(q, fields.get("qv"), fields.pop("softmax_scale", None))
    try:
        args = ForwardArgs(q=q, k=k, v=v, softmax_scale=scale, window_left=left, window_right=right, **fields)
    except TypeError as error:
        raise UsageError(f"explain: {error}", hint="new keys and values are called k_new and v_new here") from error
    check_forward(args)
    return facts_of(args)


def _pretended(capability: tuple[int, int]) -> DeviceFacts:
    row = capability_row(*capability)
    name = row.devices if row is not None else "an unknown device"
    return DeviceFacts(type="cuda", name=name, capability=capability, smem_limit=row.smem_limit if row else None)


def explain(
    q: Tensor | None = None,
    k: Tensor | None = None,
    v: Tensor | None = None,
    *,
    device: str | torch.device | None = None,
    capability: tuple[int, int] | None = None,
    dtype: str = "bf16",
    dtype_kv: str | None = None,
    head_dim: int = 128,
    head_dim_v: int | None = None,
    features: Iterable[str] = ("causal",),
    **call: Any,
) -> Explanation:
    """Explain a call given as tensors and the public functions' keywords, or described in words.

    `capability` pretends a device; else it is q's device, `device`, or the first one that torch has. `dtype_kv` and
    `head_dim_v` are for keys and values, or values, that have others.
    """
    from flash_attn3_sm121.dispatch.engine import engine

    serving = engine()
    if q is not None:
        if k is None or v is None:
            raise UsageError(
                "explain: expected q, k and v together", hint="or none of them: head_dim=128, dtype='bf16'"
            )
        where = q.device
        facts = _from_tensors(q, k, v, dict(call))
    else:
        if call:
            raise UsageError(f"explain: {', '.join(sorted(call))} go with tensors; in words there is features=(...)")
        unknown = sorted(set(features) - set(FEATURE_WORDS))
        if unknown:
            raise UsageError(f"explain: unknown features {unknown}; known are {', '.join(FEATURE_WORDS)}")
        if (least := min(head_dim, head_dim if head_dim_v is None else head_dim_v)) < 1:
            raise UsageError(f"explain: expected a head dim of 1 or more, found {least}")
        where = _device(device)
        facts = CallFacts(
            device_type=where.type if capability is None else "cuda",
            dtype=dtype,
            dtype_kv=dtype if dtype_kv is None else dtype_kv,
            head_dim=head_dim,
            head_dim_v=head_dim if head_dim_v is None else head_dim_v,
            features=frozenset(features),
        )
    return _explanation(serving, where, capability, facts)


def _device(device: str | torch.device | None) -> torch.device:
    import torch

    if device is not None:
        return device_named(device)
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def hidden_modules() -> tuple[str, ...]:
    """What stands between clients that `import flash_attn_interface` and us, with the command that removes it."""
    spec = importlib.util.find_spec("flash_attn_interface")
    if spec is None or spec.origin is None:
        return ("`import flash_attn_interface` finds nothing: a wheel in site-packages provides that name",)
    if "flash_attn3_sm121" in Path(spec.origin).parts:
        return ()
    return (
        f"`import flash_attn_interface` finds another package, {spec.origin}, and not ours; "
        f"to have ours: {pip_command()} uninstall flash_attn_3",
    )


def _explanation(
    serving: Engine, where: torch.device, capability: tuple[int, int] | None, facts: CallFacts
) -> Explanation:
    import torch

    from flash_attn3_sm121.api.ops import owner, register
    from flash_attn3_sm121.call.torches import lacking

    device = serving.device_facts(where) if capability is None else _pretended(capability)

    notes = list(hidden_modules())
    source_tree = locate().note
    if source_tree is not None:
        notes.insert(0, source_tree)
    if register().foreign:
        notes.append(f"torch.ops.flash_attn_3 belongs to {owner()}")
    notes += lacking(torch.__version__)
    forward = serving.decision(where, facts, device)
    backward = None
    if "e4m3" not in (facts.dtype, facts.dtype_kv) and not facts.features & _FORWARD_ONLY:
        backward = serving.decision(where, replace(facts, direction="backward"), device)
    return Explanation(device=device, call=facts, forward=forward, backward=backward, notes=tuple(notes))
