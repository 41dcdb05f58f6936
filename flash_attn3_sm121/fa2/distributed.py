"""`flash_attn.utils.distributed`: gathering the parts of a sequence, with gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, part, group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (whole,) = gradients
        parts = list(whole.contiguous().chunk(dist.get_world_size(ctx.group)))
        part = torch.empty_like(parts[0])
        dist.reduce_scatter(part, parts, group=ctx.group)
        return part, None


def all_gather(input_: Tensor, process_group: dist.ProcessGroup) -> Tensor:
    """Concatenate the tensors of all processes along the first dimension.

    In the backward each process gets the gradient of its own tensor, summed over all processes.
    """
    whole: Tensor = _AllGather.apply(input_, process_group)  # type: ignore[no-untyped-call]
    return whole
