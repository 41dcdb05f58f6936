"""Calls with attention sinks and gradients of the LSE, executed, and how far they are from the formula in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ci.prove.gb10.reference import WINDOWS, Scores
from flash_attn3_sm121.call.arguments import BackwardArgs
from flash_attn3_sm121.native.library import sink_gradient
from tests.fakes.fault_calls import DIM, GROUPS, HEADS, Op, _furthest, _ints, _random, furthest

# A sink far below all scores, two among them, and one that leaves next to nothing for the keys.
SINKS = torch.tensor([-20.0, 0.5, 3.0, 40.0])


def _scores(mask: str) -> Scores:
    return Scores(mask=mask, softcap=0.0, scale=DIM**-0.5, sinks=SINKS.double())


def _judged(outs: list[tuple[Tensor, Tensor]], lses: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    return {"out": _furthest(outs), "lse": _furthest(lses)}


def window(call: Op) -> dict[str, float]:
    """Unsplit, under a window; more rows than keys, so that the first see no key."""
    rows, keys = 201, 130
    q = _random(2, rows, HEADS, DIM)
    k, v = (_random(2, keys, GROUPS, DIM) for _ in range(2))
    sides = dict(zip(("window_size_left", "window_size_right"), WINDOWS["local"], strict=True))
    out, lse, *_ = call("fwd", q=q, k=k, v=v, s_aux=SINKS, num_splits=1, **sides)
    right = [_scores("local").attention(q[b].double(), k[b].double(), v[b].double()) for b in range(2)]
    assert torch.equal(right[0][1][:, 0], SINKS.double()), "the first row sees no key"
    return _judged(
        [(out[b], mine) for b, (mine, _) in enumerate(right)], [(lse[b], theirs) for b, (_, theirs) in enumerate(right)]
    )


def gpt_oss(call: Op) -> dict[str, float]:
    """Prefill of one of gpt-oss' layers with a window: head dim 64, eight heads a group, 128 keys a row."""
    q, k, v = _random(1, 384, 8, DIM), _random(1, 384, 1, DIM), _random(1, 384, 1, DIM)
    sinks = torch.linspace(-2, 4, 8)
    out, lse, *_ = call("fwd", q=q, k=k, v=v, window_size_left=127, window_size_right=0, s_aux=sinks, num_splits=1)
    kept = torch.ones(384, 384, dtype=torch.bool).tril().triu(-127)
    scores = torch.einsum("qhd,kd->hqk", q[0].double(), k[0, :, 0].double()) * DIM**-0.5
    right_lse = torch.logaddexp(scores.masked_fill(~kept, -math.inf).logsumexp(-1), sinks.double()[:, None])
    right = torch.einsum(
        "hqk,kd->qhd", torch.where(kept, (scores - right_lse[..., None]).exp(), 0), v[0, :, 0].double()
    )
    return _judged([(out[0], right)], [(lse[0], right_lse)])


def split_pages(call: Op) -> dict[str, float]:
    """Keys in pages, split in three; the second sequence has none, the third few enough for one split."""
    held, page, pages = (201, 0, 17), 16, 16
    order = torch.randperm(len(held) * pages).int().view(len(held), pages)
    k, v = (_random(len(held) * pages, page, GROUPS, DIM) for _ in range(2))
    q = _random(len(held), 2, HEADS, DIM)
    used = {"seqused_k": _ints(*held), "seqused_q": _ints(2, 2, 2)}
    out, lse, *_ = call("fwd", q=q, k=k, v=v, page_table=order, num_splits=3, s_aux=SINKS, **used)
    outs, lses = [], []
    for b, count in enumerate(held):
        mine = [x[order[b].long()].flatten(0, 1)[:count].double() for x in (k, v)]
        right, right_lse = _scores("full").attention(q[b].double(), *mine)
        outs.append((out[b], right))
        lses.append((lse[b], right_lse))
    return _judged(outs, lses)


def gradients(call: Op) -> dict[str, float]:
    """Of q, k, v and the sinks, through the output and the LSE; used lengths, the last sequence without a key."""
    lengths, rows, keys = [(100, 37), (64, 150), (9, 0)], 100, 150
    q, dout = (_random(len(lengths), rows, HEADS, DIM) for _ in range(2))
    k, v = (_random(len(lengths), keys, HEADS, DIM) for _ in range(2))
    out, lse = torch.zeros_like(q), torch.full((len(lengths), HEADS, rows), -math.inf)
    dlse = torch.randn(lse.shape)
    sinks = SINKS.double().requires_grad_()
    formula = replace(_scores("full"), sinks=sinks)
    right = [torch.zeros(x.shape, dtype=torch.float64) for x in (q, k, v)]
    right_sinks = torch.zeros(HEADS, dtype=torch.float64)
    for b, (used_q, used_k) in enumerate(lengths):
        leaves = [x[b, :n].double().requires_grad_() for x, n in ((q, used_q), (k, used_k), (v, used_k))]
        result, mine = formula.attention(*leaves)
        out[b, :used_q], lse[b, :, :used_q] = result.detach().bfloat16(), mine.detach().float()
        loss = (result * dout[b, :used_q].double()).sum() + (mine * dlse[b, :, :used_q].double()).sum()
        *parts, part = torch.autograd.grad(loss, (*leaves, sinks), allow_unused=True)
        for whole, own in zip(right, parts, strict=True):
            if own is not None:
                whole[b, : own.shape[0]] = own
        right_sinks += part
    used = {"seqused_q": _ints(*(n for n, _ in lengths)), "seqused_k": _ints(*(n for _, n in lengths))}
    given: dict[str, Any] = {"dout": dout, "q": q, "k": k, "v": v, "out": out, "softmax_lse": lse, "dlse": dlse, **used}
    found = [torch.zeros_like(x) for x in (q, k, v)]
    call("bwd", **given, **dict(zip(("dq", "dk", "dv"), found, strict=True)))
    args = BackwardArgs(**given, softmax_scale=DIM**-0.5, s_aux=SINKS)
    errors = {name: _furthest([(x, y)]) for name, x, y in zip(("dq", "dk", "dv"), found, right, strict=True)}
    return {**errors, "ds_aux": _furthest([(sink_gradient(args, lse), right_sinks)])}


CASES: dict[str, Callable[[Op], dict[str, float]]] = {
    case.__name__: case for case in (window, gpt_oss, split_pages, gradients)
}


def show(gpu: Any, ways: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every case: its figures and findings, those of kernels that are not told of sinks and the LSE's gradient, and
    how many instructions both take."""

    def ignoring(op: str, **given: Any) -> Any:
        return gpu.call(op, **{name: value for name, value in given.items() if name not in ("s_aux", "dlse")})

    told = {}
    for name, case in CASES.items():
        gpu.findings, gpu.launches = [], []
        figures, errors, instructions = furthest(gpu, case, ways), gpu.errors, _instructions(gpu)
        gpu.launches = []
        torch.manual_seed(0)
        told[name] = {
            "figures": figures, "errors": errors, "instructions": instructions, "ignored": case(ignoring),
            "instructions ignored": _instructions(gpu),
        }  # fmt: skip
    return told


def _instructions(gpu: Any) -> int:
    return sum(launch["instructions"] for launch in gpu.launches)
