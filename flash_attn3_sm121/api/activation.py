"""Plain `F.scaled_dot_product_attention` through our kernels, on devices that torch's own FA3 hook refuses.

torch (2.11 and later) has `activate_flash_attention_impl("FA3")`, which then raises at every call unless the device
is a Hopper; "FA4" does so unless it is a Blackwell of a data center. `activate()` registers the same hook for the
family library of the device, under a name of its own and under these two: a program that asks torch for "FA3" or "FA4"
later, as torchtitan does, gets our kernels. Opt-in, undone by `torch.nn.attention.restore_flash_attention_impl()`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs, default_scale
from flash_attn3_sm121.call.backend import use_backend
from flash_attn3_sm121.call.facts import CallFacts
from flash_attn3_sm121.call.validation import out_dtype
from flash_attn3_sm121.dispatch.engine import engine
from flash_attn3_sm121.errors import BackendError

IMPLEMENTATION = "FA3_SM121"
ASKED_FOR = ("FA3", "FA4")  # the names that programs ask torch for


def _refuse_dropout(dropout_p: float, is_forward: bool) -> None:
    if dropout_p != 0.0:
        raise BackendError(
            f"FA3 has no dropout, and {'forward' if is_forward else 'backward'} was asked for dropout_p={dropout_p}",
            hint="torch.nn.attention.restore_flash_attention_impl(), or sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION)",
        )


def _side(size: int | None) -> int:
    return -1 if size is None else size


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    descales: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    seqused_k: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    out: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, lse) for torch's arguments: (b, s, h, d), packed, or a paged cache."""
    _refuse_dropout(dropout_p, True)
    if alibi_slopes is not None or return_debug_mask:
        raise BackendError("FA3 has neither alibi_slopes nor a debug mask")
    q_descale, k_descale, v_descale = descales
    args = ForwardArgs(
        q=query,
        k=key,
        v=value,
        softmax_scale=default_scale(query) if scale is None else scale,
        causal=is_causal,
        out=out,
        cu_seqlens_q=cum_seq_q,
        cu_seqlens_k=None if block_table is not None else cum_seq_k,  # a paged cache has rows, not offsets
        max_seqlen_q=max_q,
        max_seqlen_k=max_k,
        seqused_k=seqused_k,
        page_table=block_table,
        q_descale=q_descale,
        k_descale=k_descale,
        v_descale=v_descale,
        num_splits=num_splits or (1 if torch.are_deterministic_algorithms_enabled() else 0),
        sm_margin=_sm_margin(),
        window_left=_side(window_size_left),
        window_right=_side(window_size_right),
    )
    with use_backend("native"):  # the fallback itself calls SDPA, which would come back here
        result, lse, _, _ = engine().forward(args)
    return result, lse


def _forward(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """aten::_flash_attention_forward."""
    query: Tensor = arguments[0]
    result, lse = _attend(*arguments, **options)
    return result, lse, *_random_state(query)


def _forward_quantized(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """aten::_flash_attention_forward.quantized: the last three arguments are the descales of q, k and v."""
    return _forward(*arguments[:-3], arguments[-3:], **options)


def _forward_inplace(out: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """aten::_flash_attention_forward_no_dropout_inplace, behind varlen_attn_out: the LSE; `out` is written to."""
    _, lse = _attend(*arguments, out=out, **options)
    return lse


def _sm_margin() -> int:
    """How many SMs torch was told to leave free, for communication beside a kernel."""
    carveout = getattr(torch._C, "_get_sm_carveout_experimental", None)
    return 0 if carveout is None else carveout() or 0


def _random_state(query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(seed, offset, debug mask) of dropout, which torch expects as results. Without dropout they are never read."""
    seed = torch.zeros(2, dtype=torch.uint64, device=query.device)
    offset = torch.zeros((), dtype=torch.uint64, device=query.device)
    return seed, offset, query.new_empty(0)


def _sdpa_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
    descales: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
) -> tuple[Any, ...]:
    """aten::_scaled_dot_product_flash_attention: (b, h, s, d), the result laid out like the query."""
    out = torch.empty_like(query, dtype=out_dtype(query))
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    _, lse = _attend(
        *(q, k, v, None, None, q.shape[1], k.shape[1], dropout_p, is_causal, return_debug_mask, descales),
        scale=scale,
        out=out.transpose(1, 2),
    )
    return out, lse, None, None, q.shape[1], k.shape[1], *_random_state(query)


def _sdpa_forward_quantized(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    q_descale: Tensor | None,
    k_descale: Tensor | None,
    v_descale: Tensor | None,
    *arguments: Any,
    **options: Any,
) -> tuple[Any, ...]:
    """aten::_scaled_dot_product_flash_attention.quantized."""
    return _sdpa_forward(query, key, value, *arguments, **options, descales=(q_descale, k_descale, v_descale))


def _backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: Tensor,
    unused: Tensor,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """aten::_flash_attention_backward."""
    _refuse_dropout(dropout_p, False)
    args = BackwardArgs(
        dout=grad_out,
        q=query,
        k=key,
        v=value,
        out=out,
        softmax_lse=logsumexp.contiguous(),
        softmax_scale=default_scale(query) if scale is None else scale,
        causal=is_causal,
        cu_seqlens_q=cum_seq_q,
        cu_seqlens_k=cum_seq_k,
        max_seqlen_q=max_q,
        max_seqlen_k=max_k,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        sm_margin=_sm_margin(),
        window_left=_side(window_size_left),
        window_right=_side(window_size_right),
    )
    with use_backend("native"):
        result = engine().backward(args)
    return result.dq, result.dk, result.dv


def _sdpa_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    philox_seed: Tensor,
    philox_offset: Tensor,
    *,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    """aten::_scaled_dot_product_flash_attention_backward: (b, h, s, d)."""
    grad, q, k, v, o = (tensor.transpose(1, 2) for tensor in (grad_out, query, key, value, out))
    gradients = _backward(
        *(grad, q, k, v, o, logsumexp, None, None, max_q, max_k, dropout_p, is_causal, philox_seed, philox_offset),
        scale=scale,
    )
    return tuple(gradient.transpose(1, 2) for gradient in gradients)


# By the names of torch's ops. A torch that lacks one (they grew from release to release) does without it.
KERNELS = {
    "_flash_attention_forward": _forward,
    "_flash_attention_forward.quantized": _forward_quantized,
    "_flash_attention_forward_no_dropout_inplace": _forward_inplace,
    "_flash_attention_backward": _backward,
    "_scaled_dot_product_flash_attention": _sdpa_forward,
    "_scaled_dot_product_flash_attention.quantized": _sdpa_forward_quantized,
    "_scaled_dot_product_flash_attention_backward": _sdpa_backward,
}


class Handle:
    """Keeps the registration alive; torch calls `remove` when another implementation is activated or restored."""

    def __init__(self, key: str) -> None:
        self.library: Any = torch.library.Library("aten", "IMPL", key)  # type: ignore[no-untyped-call]
        for name, kernel in KERNELS.items():
            if torch._C._dispatch_has_kernel(f"aten::{name}"):
                self.library.impl(name, kernel, key)  # type: ignore[no-untyped-call]
        _let_e4m3_through(True)

    def remove(self) -> None:
        self.library = None
        _let_e4m3_through(False)


def _let_e4m3_through(open_: bool) -> None:
    """torch's own hook for FA3 has this switch too: closed, torch refuses e4m3 before it asks for the flash backend."""
    switch = getattr(torch._C, "_set_sdp_use_fa3", None)
    if switch is not None:
        switch(open_)


def _require_registry() -> Any:
    from torch.nn import attention

    needed = ("register_flash_attention_impl", "restore_flash_attention_impl")
    missing = [name for name in needed if not hasattr(attention, name)]
    if missing:
        raise BackendError(
            f"torch {torch.__version__} has no torch.nn.attention.{missing[0]}: it cannot be given another "
            "flash attention",
            hint="update torch (2.11 or later), or call flash_attn3_sm121.flash_attn_func",
        )
    return attention


def activate(device: str | torch.device = "cuda") -> None:
    """Serve the flash backend of F.scaled_dot_product_attention, and torch's varlen_attn, with our kernels.

    Only where a family library serves the device: the fallback is made of SDPA itself and would gain nothing.

    Args:
        device: the device that is going to be used.

    Raises:
        BackendError: no library serves the device, or this torch has no such hook; the reason is in the message.
    """
    attention = _require_registry()
    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise BackendError("activate: torch sees no CUDA device here", hint="run `flash-attn3 doctor`")
    if where.type == "cuda" and where.index is None:
        where = torch.device("cuda", torch.cuda.current_device())
    call = CallFacts(
        device_type=where.type, dtype="bf16", dtype_kv="bf16", head_dim=128, head_dim_v=128, features=frozenset()
    )
    decision = engine().decision(where, call)
    if decision.backend != "native":
        raise BackendError(f"activate: our kernels do not serve {where}\n{decision}", hint="run `flash-attn3 doctor`")
    for name in (IMPLEMENTATION, *ASKED_FOR):
        attention.register_flash_attention_impl(name, register_fn=partial(Handle, where.type.upper()))
    attention.activate_flash_attention_impl(IMPLEMENTATION)
