"""One piece of a plan through the fused kernel: views in, results out, nothing copied on the way.

A repeated piece is one call: its row blocks become the batch, and its key spans are overlapping views of the same
memory. A few query rows per kv head (decoding) fold the query heads into rows, so that each key is read once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from flash_attn3_sm121.fallback import masks
from flash_attn3_sm121.fallback.blocked import fold, unfold
from flash_attn3_sm121.fallback.decode import FOLDED_ROWS
from flash_attn3_sm121.fallback.geometry import Geometry, Kind, Piece
from flash_attn3_sm121.fallback.selfcheck import Kernel


@dataclass(kw_only=True, slots=True)
class MaskCache:
    """The additive masks of one call; blocks of the same relative shape share one."""

    geometry: Geometry
    dtype: torch.dtype
    device: torch.device
    _masks: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def get(self, piece: Piece) -> Tensor | None:
        if piece.kind is not Kind.BAND:
            return None
        chunk = self.geometry.band.chunk
        phase = piece.key % chunk if chunk > 0 else 0
        key = (piece.rows, piece.keys, piece.row - piece.key, phase)
        if key not in self._masks:
            block = masks.block(self.geometry, piece.row, piece.rows, piece.key, piece.keys, device=self.device)
            self._masks = {key: masks.additive(block, self.dtype)}  # neighbours share; keeping more would add up
        return self._masks[key]


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """What all pieces of a call share."""

    kernel: Kernel
    scale: float
    masks: MaskCache

    def forward(self, piece: Piece, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The kernel on (B, H, S, d) tensors under the piece's mask; a mirrored square is turned around and causal."""
        if piece.kind is Kind.MIRRORED:
            out, lse = self.kernel.forward(q.flip(2), k.flip(2), v.flip(2), scale=self.scale, causal=True)
            return out.flip(2), lse.flip(2)
        causal = piece.kind is Kind.CAUSAL
        return self.kernel.forward(q, k, v, scale=self.scale, causal=causal, mask=self.masks.get(piece))

    def backward(self, piece: Piece, *tensors: Tensor) -> Gradients:
        """The same for dout, q, k, v, out and lse: (dq, dk, dv)."""
        if piece.kind is Kind.MIRRORED:
            turned = (tensor.flip(2) for tensor in tensors)
            dq, dk, dv = self.kernel.backward(*turned, scale=self.scale, causal=True)
            return dq.flip(2), dk.flip(2), dv.flip(2)
        causal = piece.kind is Kind.CAUSAL
        return self.kernel.backward(*tensors, scale=self.scale, causal=causal, mask=self.masks.get(piece))


def query_blocks(tensor: Tensor, piece: Piece) -> Tensor:
    """Rows of one (S, H, d) sequence as (repeat, H, rows, d)."""
    span = tensor[piece.row : piece.row_end].view(piece.repeat, piece.rows, *tensor.shape[1:])
    return span.transpose(1, 2)


def lse_blocks(tensor: Tensor, piece: Piece) -> Tensor:
    """Rows of one (H, S) sequence as (repeat, H, rows)."""
    span = tensor[:, piece.row : piece.row_end].reshape(tensor.shape[0], piece.repeat, piece.rows)
    return span.transpose(0, 1)


def key_blocks(tensor: Tensor, piece: Piece) -> Tensor:
    """Keys of one (T, Hk, d) sequence as (repeat, Hk, keys, d): overlapping views."""
    span = tensor[piece.key : piece.key_end].unfold(0, piece.keys, piece.rows)
    return span.permute(0, 1, 3, 2)


def forward(q: Tensor, k: Tensor, v: Tensor, piece: Piece, launch: Launch) -> tuple[Tensor, Tensor]:
    """q (B, S, H, d), k and v (B, T, Hk, d) to out (B, n, H, d) and lse (B, H, n) over the piece's n rows."""
    if piece.repeat > 1:
        outs, lses = [], []
        for row in range(q.shape[0]):
            keys, values = key_blocks(k[row], piece), key_blocks(v[row], piece)
            out, lse = launch.forward(piece, query_blocks(q[row], piece), keys, values)
            outs.append(out.transpose(1, 2).flatten(0, 1))
            lses.append(lse.transpose(0, 1).flatten(1, 2))
        return torch.stack(outs) if len(outs) > 1 else outs[0].unsqueeze(0), torch.stack(lses)
    rows = q[:, piece.row : piece.row_end]
    keys = k[:, piece.key : piece.key_end].transpose(1, 2)
    values = v[:, piece.key : piece.key_end].transpose(1, 2)
    kv_heads = keys.shape[1]
    group = rows.shape[2] // kv_heads
    if piece.kind in (Kind.FULL, Kind.BAND) and piece.rows * group <= FOLDED_ROWS:
        mask = launch.masks.get(piece)
        spread = mask.repeat(group, 1) if mask is not None else None
        out, lse = launch.kernel.forward(fold(rows, kv_heads), keys, values, scale=launch.scale, mask=spread)
        return unfold(out, piece.rows), lse.reshape(rows.shape[0], rows.shape[2], piece.rows)
    out, lse = launch.forward(piece, rows.transpose(1, 2), keys, values)
    return out.transpose(1, 2), lse


def _overlap_add(total: Tensor, blocks: Tensor, piece: Piece) -> None:
    """Add (repeat, Hk, keys, d) gradients of overlapping spans onto (T, Hk, d): one strided add per shift."""
    for start in range(0, piece.keys, piece.rows):
        width = min(piece.rows, piece.keys - start)
        part = blocks[:, :, start : start + width].transpose(1, 2)
        first = piece.key + start
        # Spans of one shift do not overlap each other: their starts are `rows` apart and they are at most that wide.
        target = total[first : first + piece.rows * (piece.repeat - 1) + width].unfold(0, width, piece.rows)
        target.permute(0, 3, 1, 2).add_(part)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Everything per query row that the backward reads: (B, S, H, d) tensors and the lse (B, H, S)."""

    dout: Tensor
    q: Tensor
    out: Tensor
    lse: Tensor


Gradients = tuple[Tensor, Tensor, Tensor]  # of q, k and v


def backward(rows: Rows, k: Tensor, v: Tensor, piece: Piece, launch: Launch, into: Gradients) -> None:
    """Add the piece's share of dq, dk and dv to those of `into`."""
    to_q, to_k, to_v = into
    if piece.repeat > 1:
        for b in range(k.shape[0]):
            dout, q, out = (query_blocks(tensor[b], piece) for tensor in (rows.dout, rows.q, rows.out))
            keys, values = key_blocks(k[b], piece), key_blocks(v[b], piece)
            dq, dk, dv = launch.backward(piece, dout, q, keys, values, out, lse_blocks(rows.lse[b], piece))
            to_q[b, piece.row : piece.row_end] += dq.transpose(1, 2).flatten(0, 1)
            _overlap_add(to_k[b], dk, piece)
            _overlap_add(to_v[b], dv, piece)
        return
    dq, dk, dv = gradients(rows, k, v, piece, launch)
    to_q[:, piece.row : piece.row_end] += dq
    to_k[:, piece.key : piece.key_end] += dk
    to_v[:, piece.key : piece.key_end] += dv


def gradients(rows: Rows, k: Tensor, v: Tensor, piece: Piece, launch: Launch) -> Gradients:
    """The share of a piece that is not repeated: dq (B, n, H, d) of its rows, dk and dv of its keys."""
    row, key = slice(piece.row, piece.row_end), slice(piece.key, piece.key_end)
    dout, q, out = (tensor[:, row].transpose(1, 2) for tensor in (rows.dout, rows.q, rows.out))
    keys, values = k[:, key].transpose(1, 2), v[:, key].transpose(1, 2)
    dq, dk, dv = launch.backward(piece, dout, q, keys, values, out, rows.lse[:, :, row])
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)
