"""torch's FlashAttention operators in plain torch, as strict about their arguments as the real ones are."""

from __future__ import annotations

import torch
from torch import Tensor

from flash_attn3_sm121.fallback import flash


class PlainKernel(flash.Kernel):
    """What the operators compute, and what they leave: NaN in rows of no sequence, the LSE +inf where nothing is seen.

    `shapes` has (rows of q, sequences, longest) of each call, `windows` their masks.
    """

    def __init__(self) -> None:
        self.windows: list[tuple[int, int]] = []
        self.shapes: list[tuple[int, int, tuple[int, int]]] = []

    def forward(
        self,
        tensors: tuple[Tensor, Tensor, Tensor],
        offsets: tuple[Tensor | None, Tensor | None],
        longest: tuple[int, int],
        window: tuple[int, int],
        scale: float,
        used: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        q, k, v = tensors
        _readable(q, k, v)
        assert k.shape[-1] == v.shape[-1] == q.shape[-1] and k.dtype == v.dtype == q.dtype
        sequences = _sequences(tensors, offsets, longest, used)
        self.windows.append(window)
        self.shapes.append((q.shape[-3], len(sequences), longest))
        packed = offsets[0] is not None
        groups_are_rows = longest[0] == 1 and q.shape[-2] > k.shape[-2] and window == (-1, -1)
        if packed and groups_are_rows:
            assert q.shape[0] == len(sequences), "the operator takes each row as a sequence then"
        out = torch.full_like(q, torch.nan)
        shape = (q.shape[1], q.shape[0]) if packed else (q.shape[0], q.shape[2], q.shape[1])
        lse = torch.full(shape, torch.nan)
        for b, (rows, keys) in enumerate(sequences):
            mine = q[rows] if packed else q[b]
            part, part_lse = _attend(mine, *((x[keys] if packed else x[b]) for x in (k, v)), window, scale)
            if packed:
                out[rows], lse[:, rows] = part, part_lse
            else:
                out[b], lse[b] = part, part_lse
        return out, lse

    def backward(
        self,
        tensors: tuple[Tensor, ...],
        offsets: tuple[Tensor | None, Tensor | None],
        longest: tuple[int, int],
        window: tuple[int, int],
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dout, q, k, v, out, lse = tensors
        _readable(dout, q, k, v, out)
        assert lse.is_contiguous() and lse.dtype == torch.float32
        assert not (lse == -torch.inf).any(), "the operator would make NaN of it"
        packed = offsets[0] is not None
        found = [torch.full_like(x, torch.nan) for x in (q, k, v)]
        for b, (rows, keys) in enumerate(_sequences((q, k, v), offsets, longest, None)):
            at, to = (rows, keys) if packed else (b, b)
            mine = (q[at], k[to], v[to], dout[at], out[at], lse[:, at] if packed else lse[b])
            gradients = _gradients(*(x.double() for x in mine), window, scale)
            for whole, part, where in zip(found, gradients, (at, to, to), strict=True):
                whole[where] = part.to(whole.dtype)
        return found[0], found[1], found[2]


def _readable(*tensors: Tensor) -> None:
    for tensor in tensors:
        assert tensor.stride(-1) == 1 and tensor.data_ptr() % 16 == 0
        assert tensor.dtype in flash.TYPES and all(stride % 8 == 0 for stride in tensor.stride()[:-1])


def _sequences(
    tensors: tuple[Tensor, Tensor, Tensor],
    offsets: tuple[Tensor | None, Tensor | None],
    longest: tuple[int, int],
    used: Tensor | None,
) -> list[tuple[slice, slice]]:
    cu_q, cu_k = offsets
    if cu_q is None or cu_k is None:
        assert cu_q is cu_k is used is None and tensors[0].dim() == 4 and len(tensors[0]) == len(tensors[1])
        assert longest == (tensors[0].shape[1], tensors[1].shape[1])
        return [(slice(0), slice(0))] * len(tensors[0])
    assert all(
        x.dtype == torch.int32 and x.is_contiguous() for x in (cu_q, cu_k) + ((used,) if used is not None else ())
    )
    assert cu_q.shape == cu_k.shape and (used is None or used.shape == (len(cu_q) - 1,))
    lists = [x.numpy().tolist() if x is not None else None for x in (cu_q, cu_k, used)]
    found = []
    for b in range(len(cu_q) - 1):
        rows = slice(lists[0][b], lists[0][b + 1])
        count = lists[2][b] if lists[2] is not None else lists[1][b + 1] - lists[1][b]
        assert rows.stop - rows.start <= longest[0] and 0 <= count <= longest[1]
        assert count == 0 or 0 <= lists[1][b] <= len(tensors[1]) - count
        found.append((rows, slice(lists[1][b], lists[1][b] + count)))
    return found


def _scores(q: Tensor, k: Tensor, window: tuple[int, int], scale: float) -> Tensor:
    """(S, H, d) and (T, H, d) to (H, S, T), -inf where hidden."""
    at, key = torch.arange(len(q))[:, None] + len(k) - len(q), torch.arange(len(k))[None]
    hidden = torch.zeros(len(q), len(k), dtype=torch.bool)
    hidden |= (key < at - window[0]) if window[0] >= 0 else hidden
    hidden |= (key > at + window[1]) if window[1] >= 0 else hidden
    return (scale * torch.einsum("shd,thd->hst", q, k)).masked_fill(hidden, -torch.inf)


def _attend(q: Tensor, k: Tensor, v: Tensor, window: tuple[int, int], scale: float) -> tuple[Tensor, Tensor]:
    """(S, H, d) and (T, Hk, d) to out (S, H, d) and lse (H, S)."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(group, 1) for x in (k, v))
    scores = _scores(q.double(), k, window, scale)
    lse = scores.logsumexp(-1)
    weights = (scores - lse.masked_fill(lse == -torch.inf, 0)[..., None]).exp()
    out = torch.einsum("hst,thd->shd", weights, v)
    return out.to(q.dtype), lse.masked_fill(lse == -torch.inf, torch.inf).float()


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, out: Tensor, lse: Tensor, window: tuple[int, int], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """From the out and lse that are given, of which sinks may be a part."""
    kv_heads, group = k.shape[1], q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    weights = (_scores(q, k, window, scale) - lse[..., None]).exp()
    delta = (dout * out).sum(-1).T[..., None]
    slopes = scale * weights * (torch.einsum("shd,thd->hst", dout, v) - delta)
    dk, dv = torch.einsum("hst,shd->thd", slopes, q), torch.einsum("hst,shd->thd", weights, dout)
    dk, dv = (x.view(len(k), kv_heads, group, q.shape[-1]).sum(2) for x in (dk, dv))
    return torch.einsum("hst,thd->shd", slopes, k), dk, dv
