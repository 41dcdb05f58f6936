"""What needs a newer torch than the oldest that is served: the rows of a table in docs/clients.md."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Since:
    """A feature, the first torch (major, minor) that has what it needs, and what an older one gets."""

    what: str
    torch: tuple[int, int]
    before: str


SINCE = (
    Since(
        what="`activate()`",
        torch=(2, 11),
        before="refused: there is no `torch.nn.attention.restore_flash_attention_impl`, or nothing of that hook",
    ),
    Since(
        what="`activate()` serves `varlen_attn_out`",
        torch=(2, 12),
        before="there is no `torch.nn.attention.varlen.varlen_attn_out`",
    ),
)


def lacking(version: str) -> tuple[str, ...]:
    """What the torch of this version has not got, each in a sentence."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:  # a build without a number is taken for a new one
        return ()
    here = (int(found[1]), int(found[2]))
    return tuple(
        f"{row.what} needs torch {row.torch[0]}.{row.torch[1]}, and this is {version}: {row.before}".replace("`", "")
        for row in SINCE
        if here < row.torch
    )
