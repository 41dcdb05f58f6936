"""The judge: its reference against fp64 mathematics, and that wrong answers are seen."""

from __future__ import annotations

import pytest
import torch

from flash_attn3_sm121.bench.case import Case, build
from flash_attn3_sm121.bench.check import check_results, reference
from tests.bench.samples import TINY, dense
from tests.flex.reference import Rule, attend

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", TINY)
def test_reference_against_fp64(name: str) -> None:
    case = build(TINY[name], CPU)
    want = reference(case)
    work = case.workload
    rule = Rule(left=work.window, right=0 if work.causal else -1)
    for i in range(len(work.sequences)):
        q, k, v, dout = case.sequence(i)
        inputs = [x.double().requires_grad_() for x in (q, k, v)]
        out, _ = attend(*inputs, scale=case.scale, rule=rule)
        parts = {"out": out}
        if dout is not None:
            grads = torch.autograd.grad(out, inputs, dout.double())
            parts |= dict(zip(("dq", "dk", "dv"), grads, strict=True))
        for key, right in parts.items():
            torch.testing.assert_close(_part(want[key], case, i).double(), right, atol=1e-4, rtol=1e-4)


def _part(x: torch.Tensor, case: Case, i: int) -> torch.Tensor:
    if case.workload.kind != "packed":
        return x[i]
    start = sum(case.workload.lengths[:i])
    return x[start : start + case.workload.lengths[i]]


def test_reference_works_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    case = build(TINY["backward"], CPU)
    whole = reference(case)
    monkeypatch.setattr("flash_attn3_sm121.bench.check.ROWS", 7)
    for name, part in reference(case).items():
        torch.testing.assert_close(part, whole[name], atol=1e-5, rtol=1e-5)


def test_low_precision_passes_and_a_window_off_by_one_does_not() -> None:
    case = build(dense(q_len=1200, k_len=1200, window=300, dtype="bf16"), CPU)
    want = reference(case)
    assert check_results({"out": want["out"].to(torch.bfloat16)}, want, "bf16").why is None
    off = build(dense(q_len=1200, k_len=1200, window=301, dtype="bf16"), CPU)
    verdict = check_results(reference(off), want, "bf16")
    assert verdict.why is not None and verdict.rms > verdict.tolerance


def test_large_numbers_may_be_rounded_in_proportion() -> None:
    want = {"out": torch.cat([torch.full((1,), 300.0), torch.ones(100_000)])}
    got = {"out": want["out"].clone()}
    got["out"][0] += 1.0  # half a unit in the last place of bf16, and as much as all the others are worth
    assert check_results(got, want, "bf16").why is None
    got["out"][0] = 1.0
    assert check_results(got, want, "bf16").why is not None


def test_what_the_judge_refuses() -> None:
    want = reference(build(TINY["backward"], CPU))
    assert check_results(dict(want), want, "fp32").why is None
    nan = dict(want) | {"dk": want["dk"].clone()}
    nan["dk"][0, 0, 0, 0] = float("nan")
    assert "dk" in str(check_results(nan, want, "fp32").why)
    missing = {name: part for name, part in want.items() if name != "dv"}
    assert check_results(missing, want, "fp32").why == "dv is missing"
    assert "expected shape" in str(check_results(dict(want) | {"dq": want["dq"][:, :-1]}, want, "fp32").why)
    spike = dict(want) | {"out": want["out"].clone()}
    spike["out"][0, 0, 0, 0] += 0.5  # one number in a thousand
    assert "out" in str(check_results(spike, want, "fp32").why)
