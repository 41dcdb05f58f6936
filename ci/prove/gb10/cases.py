"""The calls that are executed: every attention kernel of a selection, at lengths on and around tile edges. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from ci.plan.profiles import Selection
from ci.plan.units import forwards
from ci.prove.standin.calls import masks, modes

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
    mask: str = "full"  # full, causal, local, wide (a window of several tiles), chunk, causal chunk, own chunk
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
    kv8: bool = False  # K and V are e4m3, with scales by batch and head
    fp8: bool = False  # and so is Q
    qv: bool = False  # a second query, whose products with V are added to the scores

    @property
    def name(self) -> str:
        dims = f"hd{self.dim}" + f"/{self.dim_v}" * bool(self.dim_v)
        words = [self.op, dims, self.dtype, self.mask, self.mode, f"splits={self.splits}"]
        words += [f"softcap={self.softcap:g}"] * bool(self.softcap) + [f"rotary={self.rotary}"] * bool(self.rotary)
        words += [f"page={self.page}"] * ("paged" in self.mode) + [self.cache] * bool(self.cache)
        words += [word for word in ("sweep", "sinks", "dlse", "kv8", "fp8", "qv") if getattr(self, word)]
        words += [f"b{self.batch} q{self.rows} k{self.keys} h{self.heads[0]}/{self.heads[1]}"]
        words += [f"sms={self.sms} seed={self.seed} {'lazy' if self.lazy else 'eager'}"]
        return " ".join(words)

    @property
    def group(self) -> str:
        """How the files of its attention kernels begin."""
        wide = self.qv or self.dim_v > 256
        forward = "fwd_fp8" if self.fp8 else "fwd_kv8" if self.kv8 else "fwd_qv" if wide else "fwd"
        return {"bwd": "bwd", "ordered": "bwd_ordered"}.get(self.op, forward)

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

    def next(self, mode: str = "dense") -> dict[str, Any]:
        """The pose and the lengths of a call whose K and V are given in that mode."""
        i = self.count
        self.count += 1
        sms, seed, lazy = POSES[i % len(POSES)]
        return {
            "mode": mode,
            "batch": 2 if mode in ("dense", "paged whole") else 3,
            "page": (64, 16, 256)[self.count % 3] if "paged" in mode else 64,
            "sms": sms,
            "seed": seed,
            "lazy": lazy,
            "rows": ROWS[(i * 3) % len(ROWS)],
            "keys": KEYS[(i * 5) % len(KEYS)],
            "heads": HEADS[(i // 3) % len(HEADS)],
        }

    def masked(self, mask: str, mode: str) -> dict[str, Any]:
        """The same for a kernel that has few calls, with more than one row under a mask.

        The host code takes a mask over one row for none: such a call launches another kernel.
        """
        made = self.next(mode)
        return made | {"rows": 9 if mask != "full" and made["rows"] == 1 else made["rows"]}

    def rotary(self, mode: str) -> str:
        return ("", "halves", "pairs")[self.count % 3] if "append" in mode else ""


class _Kinds:
    """The types, masks, modes and so on that a selection's kernels take. Cases are combinations of them."""

    def __init__(self, chosen: Selection) -> None:
        self.types = tuple(dtype for dtype in chosen.dtypes if dtype in ("bf16", "fp16"))
        self.masks, self.modes = masks(chosen), modes(chosen)
        self.counts = (1, 3) if chosen.has("split") else (1,)
        self.caps = (0.0, 20.0) if chosen.has("softcap") else (0.0,)
        self.backward_modes = ("dense", "packed", "used") if chosen.has("varlen") else ("dense",)

    def forward(self, dims: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        return product(dims, self.types, self.masks, self.modes, self.counts)

    def backward(self, dims: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        return product(dims, self.types, self.masks, self.backward_modes)


def _sweep(turns: _Turns, **of: Any) -> Case:
    """Two sequences on one SM. Splits need more: on one SM a length is not split.

    The causal kernels of one length stay for another tile; of the smallest, two blocks fit an SM: a third sequence.
    """
    pose = turns.next()
    sms = 4 if of.get("splits", 1) > 1 else 1
    batch = 3 if of["mask"] == "causal" and of["mode"] in ("dense", "paged whole") and sms == 1 else 2
    return Case(**of, batch=batch, heads=(1, 1), page=16, sweep=True, sms=sms, seed=pose["seed"], lazy=pose["lazy"])


def _forwards(chosen: Selection, kinds: _Kinds, turns: _Turns, times: int) -> Iterator[Case]:
    for (dim, dtype, mask, mode, splits), cap in product(kinds.forward(chosen.head_dims), kinds.caps):
        for turn in range(times):
            more = turns.next(mode) | {"rotary": turns.rotary(mode)}
            # Every second time a head dim that the kernel is larger than: its last columns are nobody's.
            smaller = dim - 16 if turn % 2 else dim
            shown = mask
            if mask == "local" and chosen.has("chunk") and turn % 3 == 1:  # chunks are windows to the kernel
                shown = ("chunk", "causal chunk", "chunk", "own chunk")[turns.count // 8 % 4]
            if mode in ("cache", "append", "paged", "paged append"):
                more["cache"] = ("", "leftpad", "picked")[turns.count // 4 % 3]
            yield Case(
                op="fwd", dtype=dtype, dim=smaller, mask=shown, softcap=cap,
                splits=0 if splits > 1 and turn % 3 == 2 else splits, **more,
            )  # fmt: skip
        # So wide a cap leaves scores hundreds apart.
        smaller = dim - turns.count // 4 % 2 * 16
        yield _sweep(turns, op="fwd", dtype=dtype, dim=smaller, mask=mask, mode=mode, splits=splits, softcap=20 * cap)


def _backwards(chosen: Selection, kinds: _Kinds, turns: _Turns, times: int) -> Iterator[Case]:
    groups = ((2, 2), (4, 2), (3, 1))
    every = product(kinds.backward(chosen.backward_head_dims), groups, kinds.caps)
    for (dim, dtype, mask, mode), heads, cap in every:
        given: dict[str, Any] = {"op": "bwd", "dtype": dtype, "mask": mask, "softcap": cap}
        for turn in range(times):
            yield Case(**given, dim=dim - 16 if turn % 2 else dim, **(turns.next(mode) | {"heads": heads}))
        if heads[0] == heads[1]:
            yield _sweep(turns, **given, dim=dim, mode=mode)


def _ordered(chosen: Selection, kinds: _Kinds, turns: _Turns) -> Iterator[Case]:
    """Deterministic backwards: blocks in any order where all of them run at once, and one after another as the grid
    starts them, where one that waits for a later one would wait for ever."""
    every = product(kinds.backward(chosen.backward_head_dims), ((2, 2), (3, 1)), kinds.caps)
    for (dim, dtype, mask, mode), heads, cap in every:
        given: dict[str, Any] = {"op": "ordered", "dtype": dtype, "mask": mask, "softcap": cap}
        more = turns.masked(mask, mode) | {"heads": heads}
        yield Case(**given, dim=dim, **(more | {"sms": 48, "seed": 1 + turns.count % 5}))
        if heads[1] == 1:
            yield Case(**given, dim=dim - 16, **(more | {"sms": 1, "seed": 0}))


def _values(chosen: Selection, kinds: _Kinds, turns: _Turns) -> Iterator[Case]:
    """V with a head dim of its own: every forward kernel that has one, and the backward, which pads."""
    pairs = sorted({(f.head_dim, f.head_dim_v) for f in forwards(chosen) if f.head_dim != f.head_dim_v and not f.qv})
    for ((dim, dim_v), dtype, mask, mode, splits), smaller in product(kinds.forward(pairs), (False, True)):
        more = turns.next(mode) | {"rotary": turns.rotary(mode)}
        yield Case(
            op="fwd", dtype=dtype, dim=dim - 16 * smaller, dim_v=dim_v - 24 * smaller, mask=mask, splits=splits, **more
        )
    if chosen.has("backward"):
        inside = [pair for pair in pairs if max(pair) <= max(chosen.backward_head_dims)]
        for (dim, dim_v), dtype, mask, mode in kinds.backward(inside):
            if mode != "used":
                more = turns.next(mode) | {"heads": ((2, 2), (4, 2))[turns.count % 2]}
                yield Case(op="bwd", dtype=dtype, dim=dim, dim_v=dim_v, mask=mask, **more)


def _added(chosen: Selection, kinds: _Kinds, turns: _Turns) -> Iterator[Case]:
    """Cases for what our edits added: sinks in every forward kernel, gradients of sinks and LSE in the backward."""
    if chosen.has("sinks"):
        for (dim, dtype, mask, mode, splits), cap in product(kinds.forward(chosen.head_dims), kinds.caps):
            given: dict[str, Any] = {"op": "fwd", "dtype": dtype, "dim": dim, "mask": mask, "softcap": cap}
            yield Case(**given, splits=splits, sinks=True, **turns.next(mode))
    if chosen.has("backward") and chosen.has("dlse"):
        every = product(kinds.backward(chosen.backward_head_dims), ((2, 2), (4, 2)))
        for (dim, dtype, mask, mode), heads in every:
            given = {"op": "bwd", "dtype": dtype, "dim": dim, "mask": mask, "dlse": True}
            yield Case(**given, sinks=heads[0] > heads[1], **(turns.next(mode) | {"heads": heads}))


def _long(chosen: Selection, kinds: _Kinds) -> Iterator[Case]:
    """Keys of many tiles, most of which no mask cuts: windows wider than tiles, splits of several, many splits."""
    rows, heads = (1, 66, 9, 66), ((4, 1), (2, 2), (2, 1))
    index = 0

    def lengths(mode: str) -> dict[str, Any]:
        nonlocal index
        index += 1
        sms, seed, lazy = POSES[index % len(POSES)]
        more = {"rows": rows[index % 4], "keys": (700, 641, 579)[index % 3], "heads": heads[index // 4 % 3]}
        return {"mode": mode, "page": (64, 16)[index % 2], "sms": sms, "seed": seed, "lazy": lazy, **more}

    for dim, dtype, mask, mode, splits in kinds.forward(chosen.head_dims):
        wide = "wide" if mask == "local" else mask
        # Two calls of a wide window where there are splits: one has few rows, one has some in each place of a thread.
        for _ in range((wide == "wide") + (splits > 1)):
            more = lengths(mode)
            count = {1: 2, 4: 2, 48: 6}[more["sms"]] if splits > 1 else 1
            yield Case(op="fwd", dtype=dtype, dim=dim, mask=wide, splits=count, **more)
    if chosen.has("backward") and chosen.has("local"):
        every = product(chosen.backward_head_dims, kinds.types, kinds.backward_modes, ((2, 2), (2, 1)))
        for dim, dtype, mode, group in every:
            more = lengths(mode) | {"rows": 450, "keys": 600, "heads": group}
            yield Case(op="bwd", dtype=dtype, dim=dim, mask="wide", **more)


def _kv8(chosen: Selection, kinds: _Kinds, turns: _Turns, *, fp8: bool) -> Iterator[Case]:
    """K and V in e4m3, and Q with `fp8`: every kernel that reads them, half of the calls with sinks.

    An output of a Q in e4m3 is bf16: such a kernel has a call for each type of the others.
    """
    for (dim, dtype, mask, mode, splits), cap in product(kinds.forward(chosen.head_dims), kinds.caps):
        if "append" not in mode:
            more = turns.masked(mask, mode) | {"sinks": turns.count % 2 == 1}
            if mode in ("cache", "paged"):
                more["cache"] = ("", "leftpad", "picked")[turns.count // 4 % 3]
            smaller = turns.count // 2 % 2 * 16
            given: dict[str, Any] = {"op": "fwd", "dim": dim - smaller, "mask": mask, "softcap": cap, "kv8": True}
            yield Case(**given, dtype="bf16" if fp8 else dtype, splits=splits, fp8=fp8, **more)


def _qv(kinds: _Kinds, turns: _Turns) -> Iterator[Case]:
    """A second query, and V of more than 256 columns: each kernel with one and without, at full size and smaller."""
    heads, sizes = ((16, 1), (5, 1), (20, 1), (4, 2)), ((64, 512), (48, 256), (32, 392))
    for _, dtype, mask, mode, splits in kinds.forward((64,)):
        for qv in (True, False):
            if "append" not in mode:
                more = turns.next(mode) | {"heads": heads[turns.count % 4], "sinks": turns.count % 4 > 1}
                if mode in ("cache", "paged"):
                    more["cache"] = ("", "leftpad", "picked")[turns.count // 4 % 3]
                dim, dim_v = sizes[turns.count // 2 % 3]
                dim_v = dim_v if qv else max(dim_v, 264)
                yield Case(op="fwd", dtype=dtype, dim=dim, dim_v=dim_v, mask=mask, splits=splits, qv=qv, **more)
    if 3 in kinds.counts:  # what the scheduler was told of, and a second query that it was not told of
        for dim_v, qv in ((512, False), (256, True)):
            yield Case(
                op="metadata", dtype=kinds.types[0], dim=64, dim_v=dim_v, mode="cache", heads=(16, 1), batch=5, rows=5,
                keys=300, splits=3, qv=qv, lazy=True,
            )  # fmt: skip


def _helpers(chosen: Selection, kinds: _Kinds) -> Iterator[Case]:
    """Combine by itself, at the counts of splits between which its kernels differ, and the scheduler's metadata."""
    if chosen.has("split"):
        every = product(chosen.head_dims, kinds.types, (2, 16, 31, 64, 100, 200), (1, 40))
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
    # Upstream's newer combine kernel finds a block's sequence by going through the batch, 32 at a time.
    if chosen.has("split") and "packed" in kinds.modes:
        for (index, dim), rows in product(enumerate(chosen.head_dims), (1, 5)):
            yield Case(
                op="fwd", dtype=kinds.types[index % len(kinds.types)], dim=dim, mode="packed", splits=3, batch=70,
                rows=rows, keys=65, seed=index, sms=SMS[index % 3], sinks=chosen.has("sinks"),
            )  # fmt: skip


def cases(chosen: Selection, *, times: int = 3) -> tuple[Case, ...]:
    """Every case of a selection.

    Args:
        times: how many calls each combination of template parameters gets, each at other lengths and in another pose.
    """
    turns, kinds = _Turns(), _Kinds(chosen)
    found = list(_forwards(chosen, kinds, turns, times))
    if chosen.has("backward"):
        found += _backwards(chosen, kinds, turns, times)
    found += _added(chosen, kinds, turns)
    if chosen.has("backward") and chosen.has("deterministic"):
        found += _ordered(chosen, kinds, turns)
    found += _values(chosen, kinds, turns)
    found += _long(chosen, kinds)
    if chosen.has("kv8"):
        found += _kv8(chosen, kinds, turns, fp8=False)
    if chosen.has("fp8"):
        found += _kv8(chosen, kinds, turns, fp8=True)
    if any(f.qv for f in forwards(chosen)):
        found += _qv(kinds, turns)
    return tuple(dict.fromkeys((*found, *_helpers(chosen, kinds))))
