"""Where FlexAttention was measured to win: the only calls for which it is chosen without being asked for.

A row may be added only with a result file of `flash-attn3 bench` beside it in docs/results. The table is empty: on
CPU the sdpa backend was faster in every workload measured, and no CUDA device has been measured yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from flash_attn3_sm121.call.facts import CallFacts, DeviceFacts


@dataclass(frozen=True, kw_only=True)
class MeasuredWin:
    """One measured win over the sdpa backend, at every length; `evidence` is a file in docs/results.

    Lengths are no part of it: the interface decides once per kind of call and reuses that for other lengths.
    """

    device_type: str
    capability: tuple[int, int] | None
    features: frozenset[str]  # the call must ask for exactly these mask features
    head_dims: tuple[int, ...]
    evidence: str


MASK_FEATURES = frozenset({"causal", "local", "chunk", "softcap", "varlen"})
MEASURED_WINS: tuple[MeasuredWin, ...] = ()


def measured_win(
    call: CallFacts, device: DeviceFacts, wins: tuple[MeasuredWin, ...] = MEASURED_WINS
) -> MeasuredWin | None:
    """The row that covers this call, or None: then FlexAttention is used only when it is asked for."""
    for win in wins:
        if (
            (win.device_type, win.capability) == (device.type, device.capability)
            and win.features == call.features & MASK_FEATURES
            and call.head_dim == call.head_dim_v
            and call.head_dim in win.head_dims
        ):
            return win
    return None
