"""Every contender that runs on a CPU: right where it answers, and a reason where it does not."""

from __future__ import annotations

import warnings

import pytest
import torch

from flash_attn3_sm121.bench.case import build
from flash_attn3_sm121.bench.check import check_results, reference
from flash_attn3_sm121.bench.contenders import Refused, contenders
from flash_attn3_sm121.bench.contenders.external import FlashAttention2, FlashAttention4
from flash_attn3_sm121.bench.contenders.ours import Ours
from flash_attn3_sm121.bench.contenders.sdpa import DenseMask, TorchSdpa
from flash_attn3_sm121.bench.measure import Budget, Ceiling
from flash_attn3_sm121.bench.session import Rules, measure_workload
from tests.bench.samples import FP8, TINY

CPU = torch.device("cpu")
PLAIN = {"causal", "full", "gqa"}  # what torch's own call takes without a mask
RIGHT = {
    TorchSdpa("flash"): PLAIN,
    TorchSdpa("math"): PLAIN,
    Ours("sdpa"): set(TINY),
    DenseMask(): set(TINY) - {"paged", "ragged", "ragged-window"},
}
WRONG = {"dense-mask": {"ragged", "ragged-window"}}  # it reads only the first row's length


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("contender", RIGHT, ids=lambda contender: contender.name)
def test_who_is_right_who_is_wrong_and_who_refuses(contender: Ours, name: str) -> None:
    case = build(TINY[name], CPU)
    if name not in RIGHT[contender] | WRONG.get(contender.name, set()):
        with pytest.raises(Refused):
            contender.prepare(case)
        return
    verdict = check_results(contender.prepare(case)(), reference(case), "fp32")
    assert (verdict.why is None) is (name in RIGHT[contender])


@pytest.mark.parametrize(
    "contender,work,said",
    [
        (TorchSdpa("flash"), "window", "no window"),
        (TorchSdpa("flash"), "ragged", "unlike lengths"),
        (TorchSdpa("flash"), "packed", "no packed sequences"),
        (TorchSdpa("flash"), "cache", "top left"),
        (TorchSdpa("efficient"), "causal", "no efficient kernel"),
        (DenseMask(), "paged", "no page table"),
        (Ours("native"), "causal", "CUDA"),
        (Ours("flex"), "paged", "page table"),
        (FlashAttention2(), "causal", "flash_attn is not installed"),
        (FlashAttention4(), "causal", "flash_attn"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_refusals_say_why(contender: Ours, work: str, said: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Refused, match=said):
            contender.prepare(build(TINY[work], CPU))


@pytest.mark.parametrize("name", FP8)
def test_tensors_in_e4m3_are_timed_or_refused_with_a_reason(name: str) -> None:
    rules = Rules(budget=Budget(seconds=0, least=1), memory_limit=1e9, compile_everywhere=False, device=CPU)
    top = Ceiling(dtype="bf16", tflops=1, gbps=1)
    found = measure_workload(FP8[name], contenders(CPU), rules, top, say=lambda text: None)
    status = {entry.contender: entry.status for entry in found.entries}
    assert status["sdpa"] == "ok" and status["dense-mask"] == ("refused" if name == "paged" else "ok")
    assert status["flex"] == "skipped" and status["torch-flash"] == status["torch-math"] == "refused"
    assert all(entry.why for entry in found.entries if entry.status != "ok")


def test_flex_has_no_backward_on_cpu_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    # Compiling the forward is not what is asked here.
    import flash_attn3_sm121.fallback as fallback
    import flash_attn3_sm121.flex as flex

    monkeypatch.setattr(flex, "forward", fallback.forward)
    with pytest.raises(Refused, match="no backward on CPU"):
        Ours("flex").prepare(build(TINY["backward"], CPU))


def test_the_list_fits_the_device() -> None:
    on_cpu = [contender.name for contender in contenders(CPU)]
    assert on_cpu == ["sdpa", "flex", "torch-flash", "torch-math", "dense-mask"]
    on_cuda = [contender.name for contender in contenders(torch.device("cuda"))]
    assert on_cuda[0] == "native" and {"torch-cudnn", "torch-efficient", "flash-attn-2", "flash-attn-4"} <= set(on_cuda)
