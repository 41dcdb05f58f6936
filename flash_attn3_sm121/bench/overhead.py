"""What a call costs in Python: our public functions and upstream's, over one and the same trivial op, in one run.

The op computes nothing (it hands back fixed tensors), so what is left when the bare op's time is taken off is the
layer. Ours is measured on the path of a native kernel: validated, decided, planned and cached like on a GPU.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flash_attn3_sm121.api import attend, eager, fast, interface, kvcache, ops, private
from flash_attn3_sm121.bench import upstream
from flash_attn3_sm121.bench.machine import machine, stamped, today
from flash_attn3_sm121.call import schemas
from flash_attn3_sm121.call.facts import DeviceFacts, Settings
from flash_attn3_sm121.console import Block, Table
from flash_attn3_sm121.dispatch.engine import Engine
from flash_attn3_sm121.native import library as native
from flash_attn3_sm121.native.buildfacts import BuildFacts

NAMESPACE = "flash_attn3_overhead"
CALLS, ROUNDS = 200, 60
_HOLDERS = (attend, eager, fast, interface, kvcache, ops, private)

_LIBRARY: Any = None


def trivial_ops() -> Any:
    """`torch.ops.flash_attn3_overhead` with a library's schemas; every call gives the same tensors back."""
    global _LIBRARY
    if _LIBRARY is None:
        library: Any = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
        for name in ("fwd", "bwd", "get_scheduler_metadata"):
            library.define(f"{name}{schemas.NATIVE[name]}")
        out, lse, nothing = torch.zeros(4, 1, 8, 128, dtype=torch.bfloat16), torch.zeros(4, 8, 1), torch.zeros(0)
        forward = (out, lse, nothing, nothing)
        gradients = (nothing,) * 8
        library.impl("fwd", lambda *values: forward, "CPU")
        library.impl("bwd", lambda *values: gradients, "CPU")
        library.impl("get_scheduler_metadata", lambda *values: nothing, "CPU")
        _LIBRARY = library
    return getattr(torch.ops, NAMESPACE)


def _engine(forward: native.Op | None) -> Engine:
    """An engine that takes the CPU for a Hopper GPU whose library holds the trivial ops, or `forward`, and a canary."""
    namespace = trivial_ops()
    facts = BuildFacts(
        family="sm90", effective_arch=90, library="none", sha256="", namespace=NAMESPACE, images=("sm_90a",), ptx=(),
        dtypes=("bf16", "fp16"), head_dims=(64, 128, 256), backward_head_dims=(64, 128, 256),
        features=("backward", "causal", "local", "softcap", "varlen", "paged", "split", "append", "packgqa", "chunk"),
        smem_limit=232448, profile="full", platform="linux_x86_64", cuda="13.0", upstream="",
    )  # fmt: skip
    loaded = native.LoadedOps(
        fwd=forward or namespace.fwd.default,
        bwd=namespace.bwd.default,
        fwd_combine=None,
        get_scheduler_metadata=namespace.get_scheduler_metadata.default,
    )
    library = native.Library(facts=facts, path=Path("none"), opener=lambda path, facts: loaded)
    hopper = DeviceFacts(type="cuda", name="overhead", capability=(9, 0), smem_limit=232448)
    return Engine(
        settings=Settings(canary=forward is not None, check_cache=False),
        libraries=lambda: (library,),
        gather=lambda device: hopper,
    )


@contextlib.contextmanager
def native_on_cpu(forward: native.Op | None = None) -> Iterator[None]:
    """Replace the engine in every module that asks for it by the one above."""
    engine = _engine(forward)
    before = [vars(holder)["engine"] for holder in _HOLDERS]
    for holder in _HOLDERS:
        vars(holder)["engine"] = lambda: engine
    try:
        yield
    finally:
        for holder, old in zip(_HOLDERS, before, strict=True):
            vars(holder)["engine"] = old


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Microseconds of one call, the least over rounds, with the bare op's taken off."""

    name: str
    bare: float
    ours: float
    theirs: float | None

    @property
    def ratio(self) -> float | None:
        return None if self.theirs is None else self.ours / self.theirs


Call = Callable[[], object]


def _calls(module: Any, *, grad: bool) -> dict[str, Call]:
    """The same calls for either interface, at decode-like sizes."""
    q, k, v = (torch.zeros(4, 1, 8, 128, dtype=torch.bfloat16) for _ in range(3))
    packed = torch.zeros(4, 8, 128, dtype=torch.bfloat16)
    cache = torch.zeros(4, 256, 8, 128, dtype=torch.bfloat16)
    cu, used = torch.arange(5, dtype=torch.int32), torch.full((4,), 17, dtype=torch.int32)
    if grad:
        tq, tk, tv = (x.clone().requires_grad_() for x in (q, k, v))
        return {"flash_attn_func, training": lambda: module.flash_attn_func(tq, tk, tv, causal=True)}
    return {
        "flash_attn_func": lambda: module.flash_attn_func(q, k, v, causal=True),
        "flash_attn_func, window": lambda: module.flash_attn_func(q, k, v, causal=True, window_size=(64, 0)),
        "flash_attn_varlen_func": lambda: module.flash_attn_varlen_func(
            packed, packed, packed, cu, cu, 1, 1, causal=True
        ),
        "flash_attn_with_kvcache": lambda: module.flash_attn_with_kvcache(
            q, cache, cache, cache_seqlens=used, causal=True
        ),
        "flash_attn_with_kvcache, append": lambda: module.flash_attn_with_kvcache(
            q, cache, cache, k=k, v=v, cache_seqlens=used, causal=True
        ),
    }


def _per_call(call: Call) -> float:
    started = time.perf_counter_ns()
    for _ in range(CALLS):
        call()
    return (time.perf_counter_ns() - started) / CALLS / 1e3


def measure(theirs: Any | None) -> list[Cost]:
    """Time the bare op, our layer and upstream's in turn, round after round."""
    bare_op = trivial_ops().fwd
    q = torch.zeros(4, 1, 8, 128, dtype=torch.bfloat16)
    positional = (q, q, q, *(None,) * 20, 0.1, True, -1, -1, 0, 0.0, False, None, 1, None, 0)

    def bare() -> object:
        return bare_op(*positional)

    costs = []
    for grad in (False, True):
        mine = _calls(interface, grad=grad)
        upstreams: dict[str, Call] = {} if theirs is None else _calls(theirs, grad=grad)
        for name, call in mine.items():
            sides: dict[str, Call] = {"bare": bare, "ours": call}
            sides |= {"theirs": upstreams[name]} if theirs is not None else {}
            with torch.set_grad_enabled(grad):
                samples = _rounds(sides)
            least = {side: min(values) for side, values in samples.items()}  # whatever interrupts a round only adds
            floor = least["bare"]
            costs.append(
                Cost(
                    name=name,
                    bare=floor,
                    ours=least["ours"] - floor,
                    theirs=None if theirs is None else least["theirs"] - floor,
                )
            )
    return costs


def _rounds(sides: dict[str, Call]) -> dict[str, list[float]]:
    for call in sides.values():
        _per_call(call)
    samples: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(ROUNDS):
        for side, call in sides.items():
            samples[side].append(_per_call(call))
    return samples


def overhead_costs() -> tuple[list[Cost], str | None]:
    """The costs, and why upstream's column is missing where it is."""
    from flash_attn3_sm121.errors import SourceError

    theirs, why = None, None
    try:
        theirs = upstream.load(upstream.find(), trivial_ops())
    except SourceError as error:
        why = str(error)
    with native_on_cpu():
        return measure(theirs), why


def overhead_rows(costs: Sequence[Cost]) -> list[tuple[str, ...]]:
    """The table: a head, and a row for each call."""
    rows: list[tuple[str, ...]] = [("call", "bare op", "our layer", "upstream's layer", "ours / upstream's")]
    for cost in costs:
        theirs = "-" if cost.theirs is None else f"{cost.theirs:.2f} us"
        ratio = "-" if cost.ratio is None else f"{cost.ratio:.2f}"
        rows.append((cost.name, f"{cost.bare:.2f} us", f"{cost.ours:.2f} us", theirs, ratio))
    return rows


def overhead_table(costs: Sequence[Cost], why: str | None) -> list[Block]:
    """The costs for a terminal or a pipe, and why upstream's column is missing where it is."""
    head, *rows = overhead_rows(costs)
    table = Table(head=head, rows=rows)
    return [table] if why is None else [table, "", f"upstream's layer was not measured: {why}"]


def overhead_json(costs: Sequence[Cost]) -> str:
    """The costs as JSON, with the machine and the commit."""
    who = machine(torch.device("cpu"))
    return stamped("overhead", date=today(), machine=who, costs=[asdict(cost) for cost in costs])
