"""`torch.ops.flash_attn_3._flash_attn_forward` and `_flash_attn_backward`, which upstream has since its 3.0.0.

Lists of ops that activation checkpointing saves name them, and so do programs that were exported beside upstream's
package. diffusers before 0.36 defines the first name itself, with other arguments: where it came first its op stays,
and where it comes later it replaces ours, as torch allows for custom ops. No function of ours depends on either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flash_attn3_sm121.api import ops
from flash_attn3_sm121.call import schemas
from flash_attn3_sm121.call.arguments import ForwardArgs, default_scale
from flash_attn3_sm121.dispatch.engine import engine
from flash_attn3_sm121.errors import CallError


def _given(values: Sequence[Any]) -> dict[str, Any]:
    """The fields of a forward call; the dispatcher leaves out trailing arguments that equal their defaults."""
    defaults = schemas.defaults(schemas.CUSTOM["_flash_attn_forward"])
    given = dict(zip(schemas.FWD_FIELDS, (*values, *list(defaults.values())[len(values) - 3 :]), strict=True))
    if given["softmax_scale"] is None:
        given["softmax_scale"] = default_scale(given["q"])  # qv is not counted in, as in the op below it
    return given


def _forward(*values: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    args = ForwardArgs(**_given(values))
    if args.out is not None:
        raise CallError(
            "the op _flash_attn_forward returns new tensors, and torch lets it return no other: found out_",
            hint="call the function flash_attn_interface._flash_attn_forward, which writes into out_",
        )
    with torch.no_grad():
        out, lse, *_ = engine().forward(args)
    return out.contiguous(), lse.contiguous(), *ops.no_accumulators(args.q)


def _forward_fake(*values: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    args = ForwardArgs(**_given(values))
    if args.k_new is not None or args.out is not None:
        raise TypeError(
            "_flash_attn_forward cannot be traced (torch.compile, export) when it writes into out_ or a cache; use "
            "flash_attn_with_kvcache"
        )
    return *ops.empty_like_results(args), *ops.no_accumulators(args.q)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save what the backward of `_flash_attn_forward` needs of its inputs and output."""
    given = {**_given(inputs), "s_aux": None, "deterministic": False}
    ops.keep_for_backward(ctx, given, (output[0], output[1]))


def _differentiate(ctx: Any, dout: Tensor | None, dlse: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    gradients = ops.differentiate_through(torch.ops.flash_attn3_sm121.backward, ctx, dout, dlse)
    by_name = dict(zip(schemas.FORWARD_FIELDS, gradients, strict=True))
    return tuple(by_name.get(name) for name in schemas.FWD_FIELDS)


def _backward(*values: Any) -> Tensor:
    args, into = ops.backward_call(schemas.CUSTOM_BACKWARD_FIELDS, values)
    _, softmax_d = ops.written_gradients(args, into)
    return ops.like_the_lse(softmax_d, args)


def _backward_fake(*values: Any) -> Tensor:
    args, _ = ops.backward_call(schemas.CUSTOM_BACKWARD_FIELDS, values)
    return ops.empty_row_sums(args)


def register() -> None:
    """Define both ops, once per process, unless somebody else has defined them."""
    record = ops.register()
    if hasattr(record, "custom"):
        return
    record.custom = []  # type: ignore[attr-defined]
    kernels: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
        "_flash_attn_forward": (_forward, _forward_fake, ()),
        "_flash_attn_backward": (_backward, _backward_fake, ops.GRADIENTS),
    }
    for name, (kernel, fake, written) in kernels.items():
        qualified = f"{schemas.PUBLIC_NAMESPACE}::{name}"
        if ops.exists(qualified):
            continue
        op = torch.library.custom_op(qualified, kernel, mutates_args=written, schema=schemas.CUSTOM[name])
        op.register_fake(fake)
        if name == "_flash_attn_forward":
            op.register_autograd(_differentiate, setup_context=setup_context)
        record.custom.append(op)
