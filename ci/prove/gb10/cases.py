"""The calls that are executed: every attention kernel of a selection, at lengths on and around tile edges. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from ci.plan.profiles import Selection
from ci.plan.units import forwards

# Around the edges of tiles (64, 96, 128) and of eight rows that an instruction takes at once.
ROWS = (1, 63, 65, 128, 7, 129, 64, 127, 33, 200)
KEYS = (1, 64, 129, 63, 128, 193, 65, 191, 127, 300, 96, 257)
HEADS = ((4, 2), (3, 1), (2, 2), (6, 1))
# SMs, seed (0: warps and blocks in order), whether copies land late. One SM gives a block many tiles.
POSES = ((1, 0, True), (4, 1, False), (48, 2, True), (1, 3, False), (48, 0, False), (4, 4, True))
SMS = (1, 4, 48)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call, its lengths, and how the device runs it."""

    op: str  # fwd, bwd, ordered (a deterministic backward), combine or metadata
    dtype: str
    dim: int
    dim_v: int = 0  # the head dim of V; 0: the same
    mask: str = "full"  # full, causal, local, chunk, causal chunk
    mode: str = "dense"  # how K and V are given: dense, packed, used, cache, append, paged, paged whole, paged append
    splits: int = 1
    softcap: float = 0.0
    heads: tuple[int, int] = (2, 1)
    batch: int = 2  # where lengths differ, the last but one sequence has no keys or no rows
    rows: int = 64
    keys: int = 64
    page: int = 64
    rotary: str = ""  # "", halves or pairs
    cache: str = ""  # "", leftpad (keys begin further on) or picked (the batch's places in the cache are given)
    sms: int = 48
    seed: int = 0
    lazy: bool = False
    sweep: bool = False  # many short calls instead of one: keys around every bound of a tile, and many numbers of rows
    sinks: bool = False  # attention sinks
    dlse: bool = False  # backward: a gradient of the LSE

    @property
    def name(self) -> str:
        dims = f"hd{self.dim}" + f"/{self.dim_v}" * bool(self.dim_v)
        words = [self.op, dims, self.dtype, self.mask, self.mode, f"splits={self.splits}"]
        words += [f"softcap={self.softcap:g}"] * bool(self.softcap) + [f"rotary={self.rotary}"] * bool(self.rotary)
        words += [f"page={self.page}"] * ("paged" in self.mode) + [self.cache] * bool(self.cache)
        words += ["sweep"] * self.sweep + ["sinks"] * self.sinks + ["dlse"] * self.dlse
        words += [f"b{self.batch} q{self.rows} k{self.keys} h{self.heads[0]}/{self.heads[1]}"]
        words += [f"sms={self.sms} seed={self.seed} {'lazy' if self.lazy else 'eager'}"]
        return " ".join(words)

    @property
    def values(self) -> int:
        """The head dim of V, out and their gradients."""
        return self.dim_v or self.dim

    @property
    def document(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, document: dict[str, Any]) -> Case:
        return cls(**{**document, "heads": tuple(document["heads"])})


class _Turns:
    """Each next value of a few lists whose lengths have no common factor, so that pairs of values vary too."""

    def __init__(self) -> None:
        self.count = 0

    def next(self) -> dict[str, Any]:
        i = self.count
        self.count += 1
        sms, seed, lazy = POSES[i % len(POSES)]
        lengths = {
            "rows": ROWS[(i * 3) % len(ROWS)],
            "keys": KEYS[(i * 5) % len(KEYS)],
            "heads": HEADS[(i // 3) % len(HEADS)],
        }
        return {"sms": sms, "seed": seed, "lazy": lazy, **lengths}


def _modes(chosen: Selection) -> tuple[str, ...]:
    found = ["dense"]
    if chosen.has("varlen"):
        found += ["packed", "used", "cache"]
        found += ["append"] if chosen.has("append") else []
        found += ["paged", "paged whole"] if chosen.has("paged") else []
        found += ["paged append"] if chosen.has("paged") and chosen.has("append") else []
    return tuple(found)


def _masks(chosen: Selection) -> tuple[str, ...]:
    return ("full", "causal", *(("local",) if chosen.has("local") else ()))


def _caps(chosen: Selection) -> tuple[float, ...]:
    return (0.0, *((20.0,) if chosen.has("softcap") else ()))


def _batch(mode: str) -> int:
    return 2 if mode in ("dense", "paged whole") else 3


def _types(chosen: Selection) -> tuple[str, ...]:
    return tuple(dtype for dtype in chosen.dtypes if dtype in ("bf16", "fp16"))


def _sweep(turns: _Turns, **of: Any) -> Case:
    """Two sequences on one SM, so that a block has several tiles."""
    pose = turns.next()
    return Case(**of, heads=(1, 1), page=16, sweep=True, sms=1, seed=pose["seed"], lazy=pose["lazy"])


def _forwards(chosen: Selection, turns: _Turns, times: int) -> Iterator[Case]:
    counts = (1, *((3,) if chosen.has("split") else ()))
    every = product(chosen.head_dims, _types(chosen), _masks(chosen), _modes(chosen), counts, _caps(chosen))
    for dim, dtype, mask, mode, splits, cap in every:
        for turn in range(times):
            more = turns.next()
            if mode in ("append", "paged append"):
                more["rotary"] = ("", "halves", "pairs")[turns.count % 3]
            if "paged" in mode:
                more["page"] = (64, 16, 256)[turns.count % 3]
            # Every second time a head dim that the kernel is larger than: its last columns are nobody's.
            smaller = dim - 16 if turn % 2 else dim
            shown = mask
            if mask == "local" and chosen.has("chunk") and turn % 3 == 1:  # chunks are windows to the kernel
                shown = ("chunk", "causal chunk")[turns.count // 8 % 2]
            if mode in ("cache", "append", "paged", "paged append"):
                more["cache"] = ("", "leftpad", "picked")[turns.count // 4 % 3]
            yield Case(
                op="fwd", dtype=dtype, dim=smaller, mask=shown, mode=mode, softcap=cap, batch=_batch(mode),
                splits=0 if splits > 1 and turn % 3 == 2 else splits, **more,
            )  # fmt: skip
        # So wide a cap leaves scores hundreds apart.
        smaller = dim - turns.count // 4 % 2 * 16
        yield _sweep(turns, op="fwd", dtype=dtype, dim=smaller, mask=mask, mode=mode, splits=splits, softcap=20 * cap)


def _backwards(chosen: Selection, turns: _Turns, times: int) -> Iterator[Case]:
    modes = ("dense", *(("packed", "used") if chosen.has("varlen") else ()))
    groups = ((2, 2), (4, 2), (3, 1))
    every = product(chosen.backward_head_dims, _types(chosen), _masks(chosen), modes, groups, _caps(chosen))
    for dim, dtype, mask, mode, heads, cap in every:
        for turn in range(times):
            more = turns.next() | {"heads": heads}
            smaller = dim - 16 if turn % 2 else dim
            yield Case(
                op="bwd", dtype=dtype, dim=smaller, mask=mask, mode=mode, softcap=cap, batch=_batch(mode), **more
            )
        if heads[0] == heads[1]:
            yield _sweep(turns, op="bwd", dtype=dtype, dim=dim, mask=mask, mode=mode, softcap=cap)


def _ordered(chosen: Selection, turns: _Turns) -> Iterator[Case]:
    """Deterministic backwards: blocks in any order where all of them run at once, and one after another as the grid
    starts them, where one that waits for a later one would wait for ever."""
    modes = ("dense", *(("packed", "used") if chosen.has("varlen") else ()))
    groups = ((2, 2), (3, 1))
    every = product(chosen.backward_head_dims, _types(chosen), _masks(chosen), modes, groups, _caps(chosen))
    for dim, dtype, mask, mode, heads, cap in every:
        given: dict[str, Any] = {"op": "ordered", "dtype": dtype, "mask": mask, "mode": mode, "softcap": cap}
        more = turns.next() | {"heads": heads, "batch": _batch(mode)}
        yield Case(**given, dim=dim, **(more | {"sms": 48, "seed": 1 + turns.count % 5}))
        if heads[1] == 1:
            yield Case(**given, dim=dim - 16, **(more | {"sms": 1, "seed": 0}))


def _values(chosen: Selection, turns: _Turns) -> Iterator[Case]:
    """V with a head dim of its own: every forward kernel that has one, and the backward, which pads."""
    pairs = sorted({(f.head_dim, f.head_dim_v) for f in forwards(chosen) if f.head_dim != f.head_dim_v})
    counts = (1, *((3,) if chosen.has("split") else ()))
    every = product(pairs, _types(chosen), _masks(chosen), _modes(chosen), counts, (False, True))
    for (dim, dim_v), dtype, mask, mode, splits, smaller in every:
        more = turns.next() | {"page": (64, 16, 256)[turns.count % 3] if "paged" in mode else 64}
        more["rotary"] = ("", "halves", "pairs")[turns.count % 3] if "append" in mode else ""
        yield Case(
            op="fwd", dtype=dtype, dim=dim - 16 * smaller, dim_v=dim_v - 24 * smaller, mask=mask, mode=mode,
            batch=_batch(mode), splits=splits, **more,
        )  # fmt: skip
    if chosen.has("backward"):
        inside = [pair for pair in pairs if max(pair) <= max(chosen.backward_head_dims)]
        modes = ("dense", *(("packed",) if chosen.has("varlen") else ()))
        for (dim, dim_v), dtype, mask, mode in product(inside, _types(chosen), _masks(chosen), modes):
            more = turns.next() | {"heads": ((2, 2), (4, 2))[turns.count % 2]}
            yield Case(op="bwd", dtype=dtype, dim=dim, dim_v=dim_v, mask=mask, mode=mode, batch=_batch(mode), **more)


def _added(chosen: Selection, turns: _Turns) -> Iterator[Case]:
    """Cases for what our edits added: sinks in every forward kernel, gradients of sinks and LSE in the backward."""
    counts = (1, *((3,) if chosen.has("split") else ()))
    if chosen.has("sinks"):
        every = product(chosen.head_dims, _types(chosen), _masks(chosen), _modes(chosen), counts, _caps(chosen))
        for dim, dtype, mask, mode, splits, cap in every:
            more = turns.next() | {"page": (64, 16, 256)[turns.count % 3] if "paged" in mode else 64}
            yield Case(
                op="fwd", dtype=dtype, dim=dim, mask=mask, mode=mode, softcap=cap, batch=_batch(mode), splits=splits,
                sinks=True, **more,
            )  # fmt: skip
    if chosen.has("backward") and chosen.has("dlse"):
        modes = ("dense", *(("packed", "used") if chosen.has("varlen") else ()))
        dims = chosen.backward_head_dims
        for dim, dtype, mask, mode, heads in product(dims, _types(chosen), _masks(chosen), modes, ((2, 2), (4, 2))):
            more = turns.next() | {"heads": heads}
            yield Case(
                op="bwd", dtype=dtype, dim=dim, mask=mask, mode=mode, batch=_batch(mode), sinks=heads[0] > heads[1],
                dlse=True, **more,
            )  # fmt: skip


def _helpers(chosen: Selection) -> Iterator[Case]:
    """Combine by itself, at the counts of splits between which its kernels differ, and the scheduler's metadata."""
    if chosen.has("split"):
        every = product(chosen.head_dims, _types(chosen), (2, 16, 31, 64, 100, 200), (1, 40))
        for index, (dim, dtype, splits, rows) in enumerate(every):
            smaller = dim - 16 * (index % 2)
            yield Case(
                op="combine", dtype=dtype, dim=smaller, splits=splits, rows=rows, seed=index % 3, lazy=bool(index % 2)
            )
    # A block of the scheduler's kernel has a warp for each 31 of the batch, up to 32 warps.
    for index, batch in enumerate((1, 31, 40, 100, 200, 400, 900)):
        for mask in ("full", "causal"):
            yield Case(
                op="metadata", dtype=chosen.dtypes[0], dim=chosen.head_dims[0], mask=mask, mode="cache", batch=batch,
                splits=0 if chosen.has("split") else 1, rows=5, keys=300, seed=index, sms=SMS[index % 3],
            )  # fmt: skip


def cases(chosen: Selection, *, times: int = 3) -> tuple[Case, ...]:
    """Every case of a selection.

    Args:
        times: how many calls each combination of template parameters gets, each at other lengths and in another pose.
    """
    turns = _Turns()
    found = list(_forwards(chosen, turns, times))
    if chosen.has("backward"):
        found += _backwards(chosen, turns, times)
    found += _added(chosen, turns)
    if chosen.has("backward") and chosen.has("deterministic"):
        found += _ordered(chosen, turns)
    found += _values(chosen, turns)
    return tuple(dict.fromkeys((*found, *_helpers(chosen))))
