"""What the interfaces of serving engines share: a call into a given tensor, and what they have and we have not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flash_attn3_sm121.api.attend import attend, is_plain
from flash_attn3_sm121.call.arguments import ForwardArgs
from flash_attn3_sm121.dispatch.engine import engine
from flash_attn3_sm121.errors import CallError


def run(args: ForwardArgs, *, deterministic: bool = False) -> tuple[Tensor, Tensor]:
    """(out, lse) of a call; one that writes into `out` has no gradient and cannot be traced."""
    if args.out is None:
        out, lse, *_ = attend(args, deterministic=deterministic)
        return out, lse
    if not is_plain(args.q):
        raise TypeError("flash_attn_varlen_func cannot be traced (torch.compile, export) when it writes into out")
    with torch.no_grad():
        out, lse, *_ = engine().forward(args)
    return out, lse


def refuse(**given: tuple[Any, Any]) -> None:
    """Raise for the first argument that asks for something: name -> (found, the one value that asks for nothing)."""
    for name, (found, nothing) in given.items():
        if found is not nothing and (isinstance(found, Tensor) or found != nothing):
            value = "a tensor" if isinstance(found, Tensor) else repr(found)
            raise CallError(f"{name} is not supported here: found {value}, expected {nothing!r}")
