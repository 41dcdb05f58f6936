"""The canary: before the first native call on a device is answered, a small problem is computed twice and compared.

An image that does not fit its device can launch, write nothing and report success; this is what catches that. The
output is filled with NaN beforehand, so "nothing was written" cannot pass. `judge` is pure; `run_*` do the work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.dispatch.native_backend import out_of_memory
from flash_attn3_sm121.native import library as native
from flash_attn3_sm121.native.library import LoadedOps

if TYPE_CHECKING:
    from torch import Tensor

BATCH, LENGTH_Q, LENGTH_K, HEADS_KV, GROUP = 2, 67, 131, 2, 2
_FORWARD = Callable[[ForwardArgs], "tuple[Tensor, Tensor]"]
_BACKWARD = Callable[[BackwardArgs], "tuple[Tensor, Tensor, Tensor, Tensor | None]"]


def judge(name: str, found: Tensor, low: Tensor, exact: Tensor) -> str | None:
    """What is wrong with `found`, or None: it may be at most thrice as far from `exact` as `low` is."""
    finite = bool(torch.isfinite(found).all())
    if not finite:
        return f"{name}: {int((~torch.isfinite(found)).sum())} of {found.numel()} values are not finite"
    error = float((found.float() - exact).abs().max())
    allowed = 3.0 * float((low.float() - exact).abs().max()) + 1e-3 * max(1.0, float(exact.abs().max()))
    if error > allowed:
        return f"{name}: largest error {error:.3g}, allowed {allowed:.3g}"
    return None


def _inputs(device: torch.device, dtype: torch.dtype, dim: int, dim_v: int) -> tuple[Tensor, Tensor, Tensor]:
    # Our own stream, and no default of the user's: neither random state, nor default device, nor default dtype.
    draw = partial(
        torch.randn, generator=torch.Generator("cpu").manual_seed(20250711), dtype=torch.float32, device="cpu"
    )
    shapes = (
        (BATCH, LENGTH_Q, HEADS_KV * GROUP, dim),
        (BATCH, LENGTH_K, HEADS_KV, dim),
        (BATCH, LENGTH_K, HEADS_KV, dim_v),
    )
    q, k, v = (draw(shape).to(device=device, dtype=dtype) for shape in shapes)
    return q, k, v


def _exact(tensor: Tensor) -> Tensor:
    return tensor.float()


def _raised(error: RuntimeError) -> str:
    """A kernel that says no on its first call (an old driver, no image for the device) is as good as a wrong one."""
    full = out_of_memory(error)
    if full is not None:
        raise full  # says nothing about the kernel
    return f"the call raised {type(error).__name__}: {str(error).splitlines()[0]}"


def _sinks(device: torch.device) -> Tensor:
    return torch.linspace(-1.0, 2.0, HEADS_KV * GROUP, dtype=torch.float32, device=device)


def run_forward(
    ops: LoadedOps,
    fallback: _FORWARD,
    *,
    device: torch.device,
    dtype: torch.dtype,
    dims: tuple[int, int],
    sinks: bool = False,
    qv: bool = False,
    widened: bool = False,
) -> str | None:
    """Compare one causal forward; the text of the mismatch, or None. `widened`: K and V are e4m3 beside a 16-bit Q."""
    s_aux = _sinks(device) if sinks else None
    low_dtype = torch.bfloat16 if dtype == torch.float8_e4m3fn else dtype
    if widened:
        dtype = low_dtype
    q, k, v = _inputs(device, dtype, *dims)
    if widened:
        k, v = k.to(torch.float8_e4m3fn), v.to(torch.float8_e4m3fn)
    scale = (dims[0] + qv * dims[1]) ** -0.5
    second = _inputs(device, dtype, dims[1], dims[1])[0] if qv else None
    out = torch.full((*q.shape[:-1], dims[1]), float("nan"), dtype=low_dtype, device=device)
    args = ForwardArgs(q=q, k=k, v=v, softmax_scale=scale, causal=True, qv=second, out=out, s_aux=s_aux)
    try:
        out, lse, *_ = native.run_forward(ops, args)
    except RuntimeError as error:
        return _raised(error)

    def computed(kind: torch.dtype) -> tuple[Tensor, Tensor]:
        mine = None if second is None else second.to(kind)
        return fallback(replace(_causal(q.to(kind), k.to(kind), v.to(kind), scale, s_aux), qv=mine))

    (exact, exact_lse), (low, low_lse) = computed(torch.float32), computed(low_dtype)
    if dtype == torch.float8_e4m3fn:  # P is rounded to fp8 inside the kernel: leave it that much room
        low = low + 0.06 * exact.abs().max().to(low.dtype)
    return judge("out", out, low, exact) or judge("softmax_lse", lse, low_lse, exact_lse)


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float, s_aux: Tensor | None = None) -> ForwardArgs:
    return ForwardArgs(q=q, k=k, v=v, softmax_scale=scale, causal=True, window_right=0, s_aux=s_aux)


def run_backward(
    ops: LoadedOps,
    fallback: _FORWARD,
    fallback_backward: _BACKWARD,
    *,
    device: torch.device,
    dtype: torch.dtype,
    dims: tuple[int, int],
    dlse: bool = False,
    deterministic: bool = False,
) -> str | None:
    """Compare one causal backward; the text of the mismatch, or None. `dlse`: with a gradient of the LSE."""
    q, k, v = _inputs(device, dtype, *dims)
    dout = _inputs(device, dtype, dims[1], dims[1])[0]
    scale = dims[0] ** -0.5

    def gradients(kind: Callable[[Tensor], Tensor]) -> BackwardArgs:
        mine_q, mine_k, mine_v = kind(q), kind(k), kind(v)
        out, lse = fallback(_causal(mine_q, mine_k, mine_v, scale))
        return BackwardArgs(
            dout=kind(dout),
            q=mine_q,
            k=mine_k,
            v=mine_v,
            out=out,
            softmax_lse=lse,
            dlse=kind(dout)[..., 0].transpose(1, 2).float().contiguous() if dlse else None,
            softmax_scale=scale,
            causal=True,
            window_right=0,
            deterministic=deterministic,
        )

    args = gradients(lambda tensor: tensor)
    low, exact = fallback_backward(args), fallback_backward(gradients(_exact))
    found = [torch.full_like(tensor, float("nan")) for tensor in (q, k, v)]
    try:
        native.run_backward(ops, args, *found)
    except RuntimeError as error:
        return _raised(error)
    for name, mine, rough, right in zip(("dq", "dk", "dv"), found, low, exact, strict=False):
        assert rough is not None and right is not None
        text = judge(name, mine, rough, right)
        if text is not None:
            return text
    return None
