"""Backward calls against the gradients of the formula."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ci.prove.gb10.cases import Case
from ci.prove.gb10.check import Judge, Maker, common, ints, scores, starts, untouched
from ci.prove.gb10.child import Gpu

ENOUGH = 50_000_000  # warp instructions for any launch here: blocks that wait for each other go on for ever


def backward(gpu: Gpu, case: Case, judge: Judge) -> list[Tensor]:
    """Gradients of one call; the forward's results come from the formula, so that only the backward is judged."""
    maker = Maker(case)
    heads, groups = case.heads
    packed = case.mode == "packed"
    if case.mode == "used":
        return _used(gpu, case, judge, maker)
    rows, keys = maker.pairs() if packed else ([case.rows] * case.batch, [case.keys] * case.batch)
    at_q, at_k = starts(rows), starts(keys)
    q, dout = (maker.normal(sum(rows), heads, dim) for dim in (case.dim, case.values))
    k, v = (maker.normal(sum(keys), groups, dim) for dim in (case.dim, case.values))
    out, lse = maker.normal(sum(rows), heads, case.values), torch.empty(heads, sum(rows))
    dlse = torch.randn(lse.shape, generator=maker.random)
    right = [torch.zeros(x.shape, dtype=torch.float64) for x in (q, k, v)]
    for b in range(case.batch):
        mine, theirs = slice(int(at_q[b]), int(at_q[b + 1])), slice(int(at_k[b]), int(at_k[b + 1]))
        leaves = [x[part].double().requires_grad_() for x, part in ((q, mine), (k, theirs), (v, theirs))]
        result, own = scores(case).attention(*leaves)
        out[mine], lse[:, mine] = result.detach().to(out.dtype), own.detach().float()
        given = gradients(case, result, own, leaves, dout[mine], dlse[:, mine])
        for whole, part, value in zip(right, (mine, theirs, theirs), given, strict=True):
            whole[part] = value
    tensors: dict[str, Any] = {"dout": dout, "q": q, "k": k, "v": v, "out": out}
    by_row = {"softmax_lse": lse} | ({"dlse": dlse} if case.dlse else {})
    if packed:
        tensors |= by_row | {"cu_seqlens_q": at_q, "cu_seqlens_k": at_k}
        tensors |= {"max_seqlen_q": max(rows), "max_seqlen_k": max(keys)}
    else:
        tensors = {name: x.reshape(case.batch, -1, *x.shape[1:]) for name, x in tensors.items()}
        tensors |= {n: x.view(heads, case.batch, -1).transpose(0, 1).contiguous() for n, x in by_row.items()}
    dq, dk, dv = written(gpu, **tensors, **common(case))
    for name, found, value in zip(("dq", "dk", "dv"), (dq, dk, dv), right, strict=True):
        judge.near(name, found if packed else found.flatten(0, 1), value, kind="grad")
    return [dq, dk, dv]


def written(gpu: Gpu, **arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv of a call, which are given to it: since upstream's 3.0.0 the op does not return them."""
    dq, dk, dv = (torch.empty_like(arguments[name]) for name in ("q", "k", "v"))
    gpu.call("bwd", **arguments, dq=dq, dk=dk, dv=dv)
    return dq, dk, dv


def ordered(gpu: Gpu, case: Case, judge: Judge) -> list[Tensor]:
    """A deterministic call; where the case has a seed, once more with warps and blocks as another one has them."""
    gpu.settings.limit = ENOUGH
    first = backward(gpu, case, judge)
    if case.seed:
        gpu.settings.seed = case.seed + 100
        for mine, again in zip(first, backward(gpu, case, judge), strict=True):
            judge.same("again", again, mine)
    return first


def gradients(
    case: Case, result: Tensor, lse: Tensor, leaves: list[Tensor], dout: Tensor, dlse: Tensor
) -> list[Tensor]:
    """Of a sequence, through the output and, where the case has it, the LSE; zeros where there are no keys."""
    loss = (result * dout.double()).sum()
    if case.dlse:
        loss = loss + (lse.where(lse.isfinite(), torch.zeros_like(lse)) * dlse.double()).sum()
    return list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))


def _used(gpu: Gpu, case: Case, judge: Judge, maker: Maker) -> list[Tensor]:
    """Batches of which only a part is used; what is behind that part holds NaN, and its gradients are undefined."""
    heads, groups = case.heads
    rows, keys = maker.pairs()
    keys = keys[::-1] if case.batch > 2 else keys
    q, dout, out = (maker.normal(case.batch, case.rows, heads, dim) for dim in (case.dim, case.values, case.values))
    k, v = (maker.normal(case.batch, case.keys, groups, dim) for dim in (case.dim, case.values))
    lse = torch.full((case.batch, heads, case.rows), torch.nan)
    dlse = torch.randn(lse.shape, generator=maker.random)
    right: list[list[Tensor]] = []
    for b in range(case.batch):
        leaves = [x[b, :n].double().requires_grad_() for x, n in ((q, rows[b]), (k, keys[b]), (v, keys[b]))]
        result, own = scores(case).attention(*leaves)
        for x in (q, dout, out):
            x[b, rows[b] :] = torch.nan
        k[b, keys[b] :], v[b, keys[b] :] = torch.nan, torch.nan
        out[b, : rows[b]], lse[b, :, : rows[b]] = result.detach().to(out.dtype), own.detach().float()
        right.append(gradients(case, result, own, leaves, dout[b, : rows[b]], dlse[b, :, : rows[b]]))
        dlse[b, :, rows[b] :] = torch.nan
    given = {"dout": dout, "q": q, "k": k, "v": v, "out": out, "softmax_lse": lse}
    given |= {"dlse": dlse} if case.dlse else {}
    found = written(gpu, **given, seqused_q=ints(rows), seqused_k=ints(keys), **common(case))
    for b in range(case.batch):
        for name, x, value in zip(("dq", "dk", "dv"), found, right[b], strict=True):
            judge.near(name, x[b, : len(value)], value, kind="grad")
            judge.same("behind", x[b, len(value) :], untouched(x[b, len(value) :]))
    return [x[b, :n] for b in range(case.batch) for x, n in zip(found, (rows[b], keys[b], keys[b]), strict=True)]
