"""The sets of cases that stages run: names for `ci.prove.gpu.probes.loop`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest

import torch

from ci.prove.gpu.probes import backward, cache, forward
from ci.prove.gpu.probes.compare import Finding, GpuCase, Rule
from ci.prove.gpu.probes.forward import CAUSAL, LOCAL, Dense
from flash_attn3_sm121.selftest.cases import cases
from flash_attn3_sm121.selftest.cli import ALLOWED, check
from flash_attn3_sm121.selftest.reference import Case


def _of_selftest(case: Case) -> GpuCase:
    def findings(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
        name = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
        for result in check(case, device, name):
            yield Finding(what=result.what, error=result.error, allowed=ALLOWED[name])

    return GpuCase(name=case.name, findings=findings)


def selftest() -> tuple[GpuCase, ...]:
    """`flash-attn3 selftest`'s own cases, each refusal recorded instead of ending the run."""
    return tuple(_of_selftest(case) for case in cases())


def mixed(*groups: Sequence[GpuCase]) -> tuple[GpuCase, ...]:
    """Cases of the groups in turn, so that a run that is cut short has covered a part of each group."""
    return tuple(case for case in chain.from_iterable(zip_longest(*groups)) if case is not None)


def numerics() -> tuple[GpuCase, ...]:
    return mixed(forward.cases(), backward.cases(), cache.cases())


def sanitizer() -> tuple[GpuCase, ...]:
    """A few small calls that reach each kind of kernel: compute-sanitizer makes all ten to a hundred times slower."""
    return (
        forward.dense(Dense(dim=128, rule=Rule(mask=CAUSAL), lengths=(113, 203))),
        backward.dense(Dense(dim=64, rule=Rule(mask=CAUSAL), lengths=(113, 131))),
        cache.decode(cache.Decode(dim=64, queries=1, new=1, page=64, splits=3)),
        forward.dense(Dense(dim=64, rule=Rule(mask=LOCAL), lengths=(130, 70))),
        backward.dense(Dense(dim=128, rule=Rule(mask=LOCAL), lengths=(97, 97))),
        cache.decode(cache.Decode(dim=128, queries=4, new=4)),
    )
