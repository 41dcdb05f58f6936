"""The calls of ForwardArgs and BackwardArgs, computed by FlexAttention: those for which `refusal` is None."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.flex.blocks import MaskCache, block_mask
from flash_attn3_sm121.flex.compiled import KernelCache, ShapeClass, shape_class
from flash_attn3_sm121.flex.ranges import MaskRule, Ranges, blockwise_lse, dense_ranges, packed_ranges

MASKS = MaskCache()
KERNELS = KernelCache()

Run = Callable[[ShapeClass, Tensor, Tensor, Tensor, BlockMask], tuple[Tensor, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """The tensors of a call as FlexAttention takes them, (b, h, s, d), with its mask."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: BlockMask
    ranges: Ranges
    packed: bool  # q came as (total, h, d)
    rows: tuple[int, ...]  # leading dimensions of q as it came


def _cu_of(x: Tensor) -> Tensor:
    """The cu_seqlens of a dense (b, s, h, d) tensor that is taken as a packed one."""
    return torch.arange(x.size(0) + 1, device=x.device, dtype=torch.int32) * x.size(1)


def _cached(key: Hashable | None, keys: int, ranges: Callable[[], Ranges]) -> tuple[BlockMask, Ranges]:
    # The mask holds its intervals as an attribute, so neither is made again for a known key.
    def build() -> BlockMask:
        with torch.inference_mode(False):  # a later call may have gradients, which want plain tensors
            made = ranges()
            mask = block_mask(made, keys)
        mask.fa3_ranges = made  # type: ignore[attr-defined]
        return mask

    mask = build() if key is None else MASKS.get(key, build)
    return mask, mask.fa3_ranges  # type: ignore[attr-defined]


def _key(parts: Hashable, device: torch.device, *tensors: Tensor | None) -> Hashable | None:
    """The key under which a mask is kept, with the values of these tensors; None where reading them stalls a device.

    On CUDA a mask is used again on the stream that made it, which it is ready for, and never while a graph is captured:
    nothing is computed then, and a replay reads its masks whatever the cache holds by that time.
    """
    if any(t is not None and t.device.type != "cpu" for t in tensors):
        return None
    where: Hashable = str(device)
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            return None
        where = (where, torch.cuda.current_stream(device).cuda_stream)
    return (parts, where, *(None if t is None else tuple(t.tolist()) for t in tensors))


def _layout(args: ForwardArgs | BackwardArgs) -> Layout:
    q, k, v = args.q, args.k, args.v
    rule = MaskRule(window_left=args.window_left, window_right=args.window_right, chunk=args.attention_chunk)
    leftpad = args.leftpad_k if isinstance(args, ForwardArgs) else None
    cu_q, cu_k, used_q, used_k = args.cu_seqlens_q, args.cu_seqlens_k, args.seqused_q, args.seqused_k
    packed, rows = cu_q is not None, tuple(q.shape[:-2])
    if cu_q is None and cu_k is None:
        mask, ranges = _cached(
            _key(("dense", q.size(1), k.size(1), rule), q.device, used_q, used_k, leftpad),
            k.size(1),
            lambda: dense_ranges(
                q.size(1), k.size(1), rule=rule, device=q.device, seqused_q=used_q, seqused_k=used_k, leftpad_k=leftpad
            ),
        )
    else:
        cu_q = _cu_of(q) if cu_q is None else cu_q
        cu_k = _cu_of(k) if cu_k is None else cu_k
        q, k, v = (x if x.dim() == 3 else x.flatten(0, 1) for x in (q, k, v))
        total_q, total_k = q.size(0), k.size(0)
        mask, ranges = _cached(
            _key(("packed", total_q, total_k, rule), q.device, cu_q, cu_k, used_q, used_k, leftpad),
            total_k,
            lambda: packed_ranges(
                total_q,
                rule=rule,
                cu_seqlens_q=cu_q,
                cu_seqlens_k=cu_k,
                seqused_q=used_q,
                seqused_k=used_k,
                leftpad_k=leftpad,
            ),
        )
        q, k, v = q[None], k[None], v[None]
    return Layout(
        q=q.transpose(1, 2),
        k=k.transpose(1, 2),
        v=v.transpose(1, 2),
        mask=mask,
        ranges=ranges,
        packed=packed,
        rows=rows,
    )


def _restore(x: Tensor, rows: tuple[int, ...]) -> Tensor:
    """Bring a (b, h, s, d) tensor back to the layout in which the caller's came, contiguous."""
    return x.transpose(1, 2).reshape(*rows, x.size(1), x.size(3)).contiguous()


def _lse_out(lse: Tensor, layout: Layout) -> Tensor:
    """The LSE in upstream's layout: (b, h, s), or (h, total) for packed queries. Rows without keys are -inf already."""
    if layout.packed:
        return lse.squeeze(0).contiguous()
    if lse.size(0) != layout.rows[0]:  # dense q against packed k: computed as one packed sequence
        return lse.view(lse.size(1), *layout.rows).transpose(0, 1).contiguous()
    return lse.contiguous()


def _no_keys(args: ForwardArgs) -> tuple[Tensor, Tensor]:
    """The result of a call without keys or without queries: out is 0, and the LSE +inf as upstream's."""
    q = args.q
    out = q.new_zeros(*q.shape[:-1], args.v.size(-1))
    shape = (q.size(1), q.size(0)) if args.cu_seqlens_q is not None else (q.size(0), q.size(2), q.size(1))
    return out, torch.full(shape, float("inf"), dtype=torch.float32, device=q.device)


def forward(args: ForwardArgs, *, run: Run = KERNELS) -> tuple[Tensor, Tensor]:
    """Compute a forward call.

    Args:
        args: the call. `args.out` gets the result where it is given.
        run: compiles a kernel where needed, and calls it; tests pass a function that does not compile.

    Returns:
        (out, lse) in upstream's layouts.

    Raises:
        BackendError: the kernel does not compile.
    """
    if args.q.numel() == 0 or args.k.numel() == 0:
        out, lse = _no_keys(args)
    else:
        layout = _layout(args)
        q, k, v = layout.q, layout.k, layout.v
        on_cpu = q.device.type == "cpu"  # torch's CPU template gives no LSE
        cls = shape_class(q, k, v, scale=args.softmax_scale, softcap=args.softcap, want_lse=not on_cpu, grad=False)
        with torch.no_grad():
            got, lse = run(cls, q, k, v, layout.mask)
            if lse is None:
                lse = blockwise_lse(q, k, layout.ranges, scale=args.softmax_scale, softcap=args.softcap)
            out, lse = _restore(got, layout.rows), _lse_out(lse, layout)
    if args.out is not None:
        return args.out.copy_(out), lse
    return out, lse


def backward(args: BackwardArgs, *, run: Run = KERNELS) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Compute the gradients of a call, for which the forward is run again.

    Returns:
        (dq, dk, dv, None). The last one is the gradient of s_aux, which FlexAttention does not serve.

    Raises:
        BackendError: as `forward`.
    """
    if args.q.numel() == 0 or args.k.numel() == 0:
        return torch.zeros_like(args.q), torch.zeros_like(args.k), torch.zeros_like(args.v), None
    layout = _layout(args)
    with torch.enable_grad():
        q, k, v = (x.detach().requires_grad_() for x in (layout.q, layout.k, layout.v))
        cls = shape_class(q, k, v, scale=args.softmax_scale, softcap=args.softcap, want_lse=True, grad=True)
        out, lse = run(cls, q, k, v, layout.mask)
    dout = args.dout.reshape(q.size(0), q.size(2), q.size(1), v.size(3)).transpose(1, 2)
    outputs, grads = [out], [dout]
    if args.dlse is not None:
        # A fully masked row has LSE -inf, whose gradient is no number; upstream gives such rows zero.
        dlse = args.dlse if not layout.packed else args.dlse[None]
        if dlse.shape != lse.shape:
            dlse = dlse.transpose(0, 1).reshape(lse.shape)
        outputs, grads = [out, lse], [dout, torch.where(torch.isfinite(lse), dlse, torch.zeros_like(dlse))]
    dq, dk, dv = torch.autograd.grad(outputs, (q, k, v), grads)
    return (
        _restore(dq, tuple(args.q.shape[:-2])),
        _restore(dk, tuple(args.k.shape[:-2])),
        _restore(dv, tuple(args.v.shape[:-2])),
        None,
    )
