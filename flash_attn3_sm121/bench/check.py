"""Correctness before speed: every contender's result is compared with an fp32 reference before it is timed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flash_attn3_sm121.bench.case import Case

ROWS = 256  # the reference works in tiles of rows, so that it fits where a dense mask would not
# Root-mean-square error relative to the reference's own size. A key too many or too few in a window of 1024 makes
# 3e-2. Low-precision arithmetic makes 2e-3 to 4e-3 in bf16, and 3e-2 in e4m3, to which a kernel rounds the weights too.
# A cache in e4m3 is read without loss: q's type counts.
TOLERANCE = {"e4m3": 6e-2, "bf16": 1e-2, "fp16": 2e-3, "fp32": 1e-4}
GRADIENT_SLACK = 2.0
# The largest single error, relative to the number itself and the root mean square together: early keys gather
# gradients a hundred times the usual size, and low precision rounds those in proportion.
MAX_FACTOR = 20.0

Results = dict[str, Tensor]  # "out", and with backward "dq", "dk", "dv"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of a comparison. `rms` and `worst` are relative to the reference; `why` is None for a right result."""

    rms: float
    worst: float
    tolerance: float
    why: str | None


def _sequence(case: Case, i: int) -> Results:
    work = case.workload
    q, k, v, dout = case.sequence(i)
    group = q.size(1) // k.size(1)
    qh = q.float().transpose(0, 1)
    kh, vh = (x.float().transpose(0, 1).repeat_interleave(group, 0) for x in (k, v))
    rows, keys = q.size(0), k.size(0)
    out = torch.empty_like(qh)
    dq, dk, dv = torch.zeros_like(qh), torch.zeros_like(kh), torch.zeros_like(vh)
    doh = None if dout is None else dout.float().transpose(0, 1)
    for start in range(0, rows, ROWS):
        stop = min(rows, start + ROWS)
        p = torch.arange(start, stop, device=q.device)[:, None] + (keys - rows)
        low = max(0, int(p[0]) - work.window) if work.window >= 0 else 0
        high = max(0, int(p[-1]) + 1) if work.causal else keys
        j = torch.arange(low, high, device=q.device)[None]
        drop = torch.zeros(stop - start, high - low, dtype=torch.bool, device=q.device)
        if work.causal:
            drop |= j > p
        if work.window >= 0:
            drop |= j < p - work.window
        score = (qh[:, start:stop] @ kh[:, low:high].transpose(1, 2)) * case.scale
        weight = torch.nan_to_num(score.masked_fill_(drop, -math.inf).softmax(-1))
        out[:, start:stop] = weight @ vh[:, low:high]
        if doh is not None:
            do = doh[:, start:stop]
            inner = do @ vh[:, low:high].transpose(1, 2)
            delta = (do * out[:, start:stop]).sum(-1, keepdim=True)
            ds = weight * (inner - delta) * case.scale
            dq[:, start:stop] = ds @ kh[:, low:high]
            dk[:, low:high] += ds.transpose(1, 2) @ qh[:, start:stop]
            dv[:, low:high] += weight.transpose(1, 2) @ do
    results = {"out": out.transpose(0, 1)}
    if doh is not None:
        results["dq"] = dq.transpose(0, 1)
        for name, grad in (("dk", dk), ("dv", dv)):
            results[name] = grad.view(-1, group, *grad.shape[1:]).sum(1).transpose(0, 1)
    return results


def reference(case: Case) -> Results:
    """The right results of a case, in fp32 and in the layouts of its tensors."""
    parts = [_sequence(case, i) for i in range(len(case.workload.sequences))]
    join = torch.cat if case.workload.kind == "packed" else torch.stack
    return {name: join([part[name] for part in parts]) for name in parts[0]}


def check_results(got: Results, want: Results, dtype: str, *, slack: float = 1.0) -> Verdict:
    """Compare results with the reference.

    Args:
        got: the contender's tensors by name.
        want: the reference's; each of them must be in `got`.
        dtype: names the tolerance.
        slack: how many times the tolerance is allowed, for arithmetic that is coarser by design.

    Returns:
        The largest errors over all tensors, and the first tensor that is wrong.
    """
    rms = worst = 0.0
    why: str | None = None
    for name, right in want.items():
        if name not in got:
            return Verdict(rms=math.inf, worst=math.inf, tolerance=0.0, why=f"{name} is missing")
        given = got[name].float()
        if given.shape != right.shape:
            text = f"{name}: expected shape {tuple(right.shape)}, found {tuple(given.shape)}"
            return Verdict(rms=math.inf, worst=math.inf, tolerance=0.0, why=text)
        size = float(right.square().mean().sqrt()) or 1.0
        error = given - right
        this_rms = float(error.square().mean().sqrt()) / size
        this_worst = float((error.abs() / (right.abs() + size)).max())
        allowed = slack * TOLERANCE[dtype] * (1.0 if name == "out" else GRADIENT_SLACK)
        if not this_rms <= allowed or not this_worst <= MAX_FACTOR * allowed:  # a NaN fails as well
            why = why or f"{name}: error {this_rms:.2g} of its size, allowed {allowed:.2g}"
            rms, worst = max(rms, this_rms), max(worst, this_worst)
            if math.isnan(this_rms):
                rms = worst = math.inf
        rms, worst = max(rms, this_rms), max(worst, this_worst)
    return Verdict(rms=rms, worst=worst, tolerance=slack * TOLERANCE[dtype], why=why)
