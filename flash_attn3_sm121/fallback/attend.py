"""Attention of one group: the plan's pieces through the fused kernel, or the blocked path where that one can't serve.

Forward and backward hold O(rows) state beside their results; the largest temporary is one block of rows against the
span of keys it sees.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from flash_attn3_sm121.fallback import blocked, kernels, pieces
from flash_attn3_sm121.fallback.blocked import Saved, Scoring
from flash_attn3_sm121.fallback.geometry import Geometry, Piece, plan
from flash_attn3_sm121.fallback.selfcheck import Kernel


def padded(tensor: Tensor, dim: int) -> Tensor:
    """Zeros added to the last dimension up to `dim`, and a last stride of 1."""
    if tensor.shape[-1] != dim:
        return functional.pad(tensor, (0, dim - tensor.shape[-1]))
    return tensor if tensor.stride(-1) == 1 or tensor.numel() == 0 else tensor.contiguous()


def merge(outs: list[Tensor], lses: list[Tensor]) -> tuple[Tensor, Tensor]:
    """One result from partial ones over different keys: outs (B, S, H, d), lses (B, H, S); each row saw a key."""
    stacked = torch.stack(lses)
    total = stacked.logsumexp(0)
    shares = (stacked - total).exp().transpose(2, 3).unsqueeze(-1)
    result = outs[0] * shares[0]
    for out, share in zip(outs[1:], shares[1:], strict=True):
        result.addcmul_(out.to(result.dtype), share)
    return result, total


def forward(
    q: Tensor, k: Tensor, v: Tensor, qv: Tensor | None, geometry: Geometry, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """q (B, S, H, d), k and v (B, T, Hk, d | dv) of one type to out (B, S, H, dv), contiguous, and lse (B, H, S).

    Rows that see nothing get 0 and -inf. The lse is fp32 (fp64 for fp64 inputs).
    """
    kernel = kernels.pick(q, k, v, qv, scoring)
    if kernel is None:
        out, lse = blocked.forward(q, k, v, qv, geometry, scoring)
        return out.to(q.dtype), lse
    batch, rows, heads, dim = q.shape
    dim_v = v.shape[-1]
    q, k, v = (padded(tensor, dim) for tensor in (q, k, v))
    groups = plan(geometry)
    launch = _launch(kernel, q, geometry, scoring)
    if len(groups) == 1 and groups[0][0].row_end - groups[0][0].row == rows:
        out, lse = _group(q, k, v, groups[0], launch)
        return out[..., :dim_v].to(q.dtype).contiguous(), lse.contiguous()
    out = q.new_empty((batch, rows, heads, dim_v))
    lse = q.new_empty((batch, heads, rows), dtype=blocked.accumulator(q.dtype))
    out[:, : geometry.dead], lse[:, :, : geometry.dead] = 0, -torch.inf
    for group in groups:
        span = slice(group[0].row, group[0].row_end)
        part, part_lse = _group(q, k, v, group, launch)
        out[:, span] = part[..., :dim_v]
        lse[:, :, span] = part_lse
    return out, lse


def _launch(kernel: Kernel, q: Tensor, geometry: Geometry, scoring: Scoring) -> pieces.Launch:
    masks = pieces.MaskCache(geometry=geometry, dtype=q.dtype, device=q.device)
    return pieces.Launch(kernel=kernel, scale=scoring.scale, masks=masks)


def _group(q: Tensor, k: Tensor, v: Tensor, group: tuple[Piece, ...], launch: pieces.Launch) -> tuple[Tensor, Tensor]:
    results = [pieces.forward(q, k, v, piece, launch) for piece in group]
    if len(results) == 1:
        return results[0]
    return merge([out for out, _ in results], [lse for _, lse in results])


def backward(
    rows: pieces.Rows,
    k: Tensor,
    v: Tensor,
    delta: Tensor | None,
    geometry: Geometry,
    scoring: Scoring,
    *,
    ordered: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) in q's type or the sum's. `delta` (B, H, S) is given where it is not just rowsum(dout * out).

    `ordered`: the same bits each time.
    """
    q = rows.q
    kernel = kernels.pick(q, k, v, None, scoring, ordered=ordered) if delta is None else None
    if kernel is None:
        if delta is None:
            delta = row_delta(rows.dout, rows.out)
        return blocked.backward(rows.dout, q, k, v, Saved(lse=rows.lse, delta=delta), geometry, scoring)
    dim, dim_v, kind = q.shape[-1], v.shape[-1], blocked.accumulator(q.dtype)
    k, v = padded(k, dim), padded(v, dim)
    rows = pieces.Rows(
        dout=padded(rows.dout, dim),
        q=padded(q, dim),
        out=padded(rows.out, dim),
        lse=rows.lse.to(kind),
    )
    groups = plan(geometry, backward=True)
    launch = _launch(kernel, q, geometry, scoring)
    if len(groups) == 1 and len(groups[0]) == 1 and _covers(groups[0][0], geometry):
        dq, dk, dv = pieces.gradients(rows, k, v, groups[0][0], launch)
        return dq, dk, dv[..., :dim_v]
    once = all(len(group) == 1 for group in groups)  # each row of dq is written by one piece
    dq = torch.zeros(q.shape, dtype=q.dtype if once else kind, device=q.device)
    dk, dv = (torch.zeros(x.shape, dtype=kind, device=q.device) for x in (k, v))
    for group in groups:
        for piece in group:
            pieces.backward(rows, k, v, piece, launch, (dq, dk, dv))
    return dq, dk, dv[..., :dim_v]


def _index(numbers: list[int]) -> slice | list[int]:
    whole = numbers[-1] - numbers[0] + 1 == len(numbers)
    return slice(numbers[0], numbers[-1] + 1) if whole else numbers


def clear_zeros(out: Tensor, v: Tensor, geometry: Geometry, dq: Tensor, dk: Tensor) -> None:
    """Write exact zeros over the rounding noise in dq and dk where a row sees one key.

    The slope of such a row's score is p * (dout v - dout out), and its out is v. A caller that computes attention in
    parts passes the out of all keys, which is not v: nothing is cleared then. Nothing here waits for the device.
    """
    rows, keys = geometry.alone()
    if not rows:
        return
    at = _index(rows)
    seen = v[:, [geometry.low(row) for row in rows]].unsqueeze(3)
    mine = out[:, at]
    grouped = mine.view(*mine.shape[:2], v.shape[2], -1, mine.shape[-1])
    same = (grouped == seen).all()
    dq[:, at] = torch.where(same, 0.0, dq[:, at])
    if keys:
        dk[:, _index(keys)] = torch.where(same, 0.0, dk[:, _index(keys)])


def _covers(piece: Piece, geometry: Geometry) -> bool:
    """Whether one plain piece is the whole problem."""
    return (piece.row, piece.rows, piece.key, piece.keys) == (0, geometry.rows, 0, geometry.keys)


def row_delta(dout: Tensor, out: Tensor) -> Tensor:
    """rowsum(dout * out) as (B, H, S), in the sum's type."""
    kind = blocked.accumulator(dout.dtype)
    return (dout.to(kind) * out.to(kind)).sum(-1).transpose(1, 2)
