"""In the executing process: make a case's tensors, call the op, and say how far the results are from the formula."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ci.prove.gb10.cases import Case
from ci.prove.gb10.child import Gpu
from ci.prove.gb10.reference import CHUNKS, WINDOWS, Scores

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
STEEP = 40.0  # times a key: a row whose score of that key is hundreds above the others
PAD = 8  # columns of NaN behind each head, where a tensor's rows allow it
OTHER_POISON = 0x3C  # small finite numbers, where the first poison is NaN

# What a right result may differ by: absolute, and relative to the right value. bf16 has eight bits, fp16 eleven; sums
# are fp32. P is rounded before it meets V, so errors of outputs are of the order of an element's last bit.
LIMITS = {
    ("bf16", "out"): (4e-3, 6e-3),
    ("fp16", "out"): (6e-4, 1e-3),
    ("bf16", "grad"): (1.5e-2, 1e-2),
    ("fp16", "grad"): (3e-3, 1.5e-3),
}
ROUNDS = {"bf16": 2.0**-8, "fp16": 2.0**-11}  # what rounding to nearest takes off a number at most, relative
LSE_LIMIT = (5e-6, 1e-6)
# A score is a sum over the columns of a head, and each addition rounds it: an eighth of half a last bit a column.
COLUMN = 2.0**-27
# Rotary turns Q away from the key that `spike` has turned it to, so that large terms cancel. A product of two fp16 has
# more bits than fp32 can add to a sum without rounding: what is left is off by the rounding of terms in the hundreds.
TURNED_LSE = {"bf16": 2e-5, "fp16": 2e-4}


class Judge:
    """Collects figures: the largest error by name, as a part of what is allowed. More than 1 is wrong."""

    def __init__(self, dtype: str, dim: int, *, turned: bool = False) -> None:
        self.dtype = dtype
        absolute, relative = LSE_LIMIT
        self.lse = TURNED_LSE[dtype] if turned else absolute, max(relative, dim * COLUMN)
        self.errors: dict[str, float] = {}
        self.parts: dict[str, float] = {}
        self.squares = torch.zeros(2, dtype=torch.float64)  # sums of squared errors: found, and of the formula rounded

    def near(
        self, name: str, found: Tensor, right: Tensor, *, kind: str, room: Callable[[], Tensor] | None = None
    ) -> None:
        """`found` is right but for rounding; NaN and a wrong infinity are infinitely far.

        Args:
            room: gives the largest error that rounding can cause in each number. It is called where the limit is
                exceeded, and the larger of the two counts.
        """
        absolute, relative = self.lse if kind == "lse" else LIMITS[self.dtype, kind]
        found, right = found.double(), right.double()
        same = found == right  # infinities
        error = torch.where(same, 0.0, (found - right).abs()).nan_to_num(math.inf, math.inf)
        allowed = absolute + relative * torch.where(right.isfinite(), right.abs(), 0.0)
        if room is not None and bool((error > allowed).any()):
            allowed = torch.maximum(allowed, room())
        part = error / allowed
        if error.numel():
            self.errors[name] = max(self.errors.get(name, 0.0), float(error.max()))
            self.parts[name] = max(self.parts.get(name, 0.0), float(part.max()))

    def rounded(self, found: Tensor, right: Tensor, *, room: Tensor, same: Tensor) -> None:
        """An output of P in e4m3: each number has its `room`, and all of a case are as near to the right ones as
        `same`, the formula with the same roundings, but for a fifth.
        """
        error = (found.double() - right).abs().nan_to_num(math.inf, math.inf)
        if error.numel():
            self.squares += torch.stack((error.square().sum(), (same - right).square().sum()))
            self.errors["out"] = max(self.errors.get("out", 0.0), float(error.max()))
            self.parts["out"] = max(self.parts.get("out", 0.0), float((error / room).max()))
            self.parts["out, all"] = float((self.squares[0] / self.squares[1].clamp(min=1e-12)).sqrt()) / 1.2

    def same(self, name: str, found: Tensor, right: Tensor) -> None:
        """`found` is right to the bit."""
        width = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[found.element_size()]
        wrong = int((found.contiguous().view(width) != right.contiguous().view(width)).sum())
        self.errors[name] = max(self.errors.get(name, 0.0), float(wrong))
        self.parts[name] = max(self.parts.get(name, 0.0), math.inf if wrong else 0.0)


class Maker:
    """Random tensors of a case, the same each time; what lies between heads is NaN."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.random = torch.Generator().manual_seed(case.rows * 1009 + case.keys * 31 + case.dim)

    def normal(self, *shape: int) -> Tensor:
        """Of the case's dtype, with NaN behind the last dimension."""
        dtype = TYPES[self.case.dtype]
        whole = torch.full((*shape[:-1], shape[-1] + PAD), math.nan, dtype=dtype)
        whole[..., : shape[-1]] = torch.randn(shape, generator=self.random).to(dtype)
        return whole[..., : shape[-1]]

    def keys(self, *shape: int) -> Tensor:
        """K or V: as above, where the case has them in e4m3 with values of that type."""
        made = self.normal(*shape)
        return made.copy_(made.to(torch.float8_e4m3fn)) if self.case.kv8 else made

    def queries(self, q: Tensor) -> Tensor:
        """Q as the call has it. What it loses on the way to e4m3, `q` loses, too."""
        return self.stored(q.copy_(q.to(torch.float8_e4m3fn))) if self.case.fp8 else q

    def second(self, q: Tensor) -> Tensor | None:
        """A second query for the rows of `q`, NaN where they are; None for a case without one."""
        if not self.case.qv:
            return None
        made = self.normal(*q.shape[:-1], self.case.values)
        return made.masked_fill_(q[..., :1].isnan(), math.nan)

    def stored(self, x: Tensor) -> Tensor:
        """K or V as the call has them: those of `keys`, with NaN behind the last dimension."""
        if not self.case.kv8:
            return x
        whole = torch.full((*x.shape[:-1], x.shape[-1] + 16), math.nan).to(torch.float8_e4m3fn)
        return whole[..., : x.shape[-1]].copy_(x)

    @property
    def scales(self) -> dict[str, Tensor]:
        """What numbers in e4m3 are multiplied with, another one for each of the batch and each head of K."""
        if not self.case.kv8:
            return {}
        count = self.case.batch * self.case.heads[1]
        spread = torch.arange(count).view(self.case.batch, -1) / count
        return {"q_descale": 1.1 - spread / 3, "k_descale": 0.6 + spread, "v_descale": 1.0 - spread / 2}

    def numbers(self, b: int, *qkv: Tensor) -> list[Tensor]:
        """Q, K and V of a sequence as the formula has them: in fp64, scaled."""
        made = [x.double() for x in qkv]
        for x, scale in zip(made, self.scales.values(), strict=False):
            x *= scale[b].double().repeat_interleave(x.shape[1] // scale.shape[1])[:, None]
        return made

    def spike(self, q: Tensor, k: Tensor) -> None:
        """Turn half of a sequence's rows to a key that they see: only the right maximum keeps its exponential finite.

        Args:
            q: (rows, heads, d), changed in place.
            k: (keys, groups, d).
        """
        kept = scores(self.case).keep(len(q), len(k))
        if kept.any():
            heads = q.shape[1]
            chance = torch.rand(heads, *kept.shape, generator=self.random).masked_fill(~kept, -1.0)
            for head, key in enumerate(chance.argmax(-1)):
                every = slice(head % 2, None, 2)
                q[every, head] = STEEP * k[key[every], head * k.shape[1] // heads]

    def lengths(self, most: int, *, none: bool = False) -> list[int]:
        """A length for each of the batch: shorter ones, and the whole; the last but one is 0 with `none`."""
        shorter = [max(1, most * (3 + i % 4) // 7 - i % 2) for i in range(self.case.batch - 1)]
        return [*shorter[: len(shorter) - none], *([0] * none), most]

    def pairs(self) -> tuple[list[int], list[int]]:
        """Rows and keys of each of the batch; the last but one has no rows, or no keys."""
        odd = self.case.seed % 2 == 1
        return self.lengths(self.case.rows, none=odd), self.lengths(self.case.keys, none=not odd)


def untouched(x: Tensor) -> Tensor:
    """A tensor like x with the bytes that new memory has in the executing process, before anything is written."""
    return torch.full_like(x.contiguous().view(torch.int8), -1).view(x.dtype)


def ints(values: Sequence[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int32)


def starts(lengths: Sequence[int]) -> Tensor:
    return ints([sum(lengths[:i]) for i in range(len(lengths) + 1)])


def common(case: Case) -> dict[str, Any]:
    """The arguments that say what stands between Q, K and the softmax."""
    made: dict[str, Any] = {"softcap": case.softcap}
    if case.op == "fwd" and case.sinks:
        made["s_aux"] = sinks_of(case)
    if case.op == "ordered":
        made["deterministic"] = True
    if "causal" in case.mask:
        made["is_causal"] = True
    if case.mask in CHUNKS:
        made["attention_chunk"] = CHUNKS[case.mask]
    elif case.mask in WINDOWS:
        made["window_size_left"], made["window_size_right"] = WINDOWS[case.mask]
    return made


def sinks_of(case: Case) -> Tensor | None:
    """A sink a head, from one that counts next to nothing to one that leaves the keys little; None without sinks."""
    return torch.linspace(-6.0, 6.0, case.heads[0]) if case.sinks else None


def scores(case: Case) -> Scores:
    sinks = sinks_of(case)
    return Scores(
        mask=case.mask, softcap=case.softcap, scale=case.dim**-0.5, sinks=None if sinks is None else sinks.double()
    )


def run_case(gpu: Gpu, case: Case) -> tuple[Judge, list[Tensor]]:
    """The figures of a case, and every tensor that the kernels wrote."""
    from ci.prove.gb10 import check_bwd, check_fwd

    judge = Judge(case.dtype, case.dim + case.qv * case.values, turned=bool(case.rotary))
    checks: dict[str, Callable[[Gpu, Case, Judge], list[Tensor]]] = {
        "fwd": check_fwd.forward,
        "bwd": check_bwd.backward,
        "ordered": check_bwd.ordered,
        "combine": check_fwd.combine,
        "metadata": check_fwd.metadata,
    }
    written = [tensor for part in parts(case) for tensor in checks[case.op](gpu, part, judge)]
    return judge, written


def parts(case: Case) -> list[Case]:
    """The calls of a case: itself, or those of a sweep."""
    if not case.sweep:
        return [case]
    # Columns are compared in pairs, eights apart: 1 and 2 more than each eight are on both sides of every bound. They
    # take turns, as each second row has one score so high that it does not show whether another key was seen.
    eights = list(enumerate(range(0, 130, 8)))
    whole = replace(case, sweep=False, rows=128)
    calls = [replace(whole, keys=eight + 1 + at % 2) for at, eight in eights]
    if case.mask == "local":
        calls += [replace(whole, rows=64, keys=keys) for keys in (127, 128, 183, 184)]
        calls += [replace(whole, rows=rows, keys=rows + 40) for rows in range(9, 129, 16)]
        # A window's left edge in tiles that its right edge does not cut, and tiles that neither cuts.
        calls += [replace(whole, mask="middle", keys=keys) for keys in (249, 250, 257, 258)]
        calls += [replace(whole, mask="wide", keys=600)]
        if case.op == "fwd":
            calls += [replace(whole, mask="own chunk", keys=130)]
    elif case.mask == "causal":
        # As many keys as rows or more: a row written behind a sequence without keys is one that has some.
        calls += [replace(whole, keys=130), replace(whole, keys=257)]
        rows = [1 + eight * 7 % 129 for _, eight in eights]
        calls += [replace(whole, rows=n, keys=n + at * 5 % 33 + at % 2) for at, n in enumerate(rows)]
    else:
        calls += [replace(whole, rows=1 + eight * 7 % 129, keys=eight + 2 - at % 2) for at, eight in eights]
    if "append" in case.mode:  # a part of the head is turned
        calls += [replace(whole, keys=40, rotary=how) for how in ("halves", "pairs")]
    if "paged" in case.mode:  # pages of a key each, as SGLang has them
        calls += [replace(whole, keys=258, page=1)]
    return [*calls, replace(whole, keys=1, rows=300)]  # whole tiles of rows that see no key, where a mask has them


def one(gpu: Gpu, case: Case) -> dict[str, Any]:
    """A case in its pose, and once more with another poison where something read what nobody wrote."""
    gpu.findings, gpu.launches = [], []
    gpu.settings.seed, gpu.settings.lazy, gpu.settings.poison = case.seed, case.lazy, 0xFF
    gpu.native.poison(0xFF)
    begun = time.perf_counter()
    document: dict[str, Any] = {"case": case.name, "error": "", "parts": {}, "errors": {}, "second": None}
    try:
        judge, written = run_case(gpu, case)
        document |= {"parts": judge.parts, "errors": judge.errors}
        if any(found["kind"] == "unwritten" for found in gpu.findings):
            kept, launches = gpu.findings, gpu.launches
            gpu.findings, gpu.launches = [], []
            gpu.settings.poison = OTHER_POISON
            _, again = run_case(gpu, case)
            gpu.findings, gpu.launches = kept, launches
            document["second"] = all(equal(a, b) for a, b in zip(written, again, strict=True))
    except RuntimeError as error:
        document["error"] = str(error)
    launched: dict[str, int] = {}
    for launch in gpu.launches:
        launched[launch["kernel"]] = launched.get(launch["kernel"], 0) + 1
    document |= {
        "findings": gpu.findings,
        "launched": launched,
        "instructions": sum(launch["instructions"] for launch in gpu.launches),
        "execution_s": sum(launch["seconds"] for launch in gpu.launches),
        "seconds": time.perf_counter() - begun,
    }
    return document


def equal(a: Tensor, b: Tensor) -> bool:
    """To the bit, NaN included."""
    return torch.equal(a.contiguous().flatten().view(torch.int8), b.contiguous().flatten().view(torch.int8))


def run(gpu: Gpu, cases: list[dict[str, Any]], log: str) -> dict[str, list[int]]:
    """Run cases, each result a line of `log` at once; returns how often each instruction of each kernel ran."""
    torch.set_num_threads(1)
    names: set[str] = set()
    with Path(log).open("a", encoding="utf-8") as lines:
        for document in cases:
            case = Case.of(document)
            lines.write(json.dumps({"begun": case.name}) + "\n")
            lines.flush()
            result = one(gpu, case)
            names.update(result["launched"])
            lines.write(json.dumps(result) + "\n")
            lines.flush()
    return {name: [count for _, _, count in gpu.machine.counts(name)] for name in sorted(names)}
