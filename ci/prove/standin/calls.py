"""The calls that exercise a library's host code, and the devices that it is shown. Data and pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from ci.plan.profiles import Selection
from ci.plan.units import forwards
from flash_attn3_sm121.arch import Family

DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a GPU says of itself, as far as the host code asks."""

    name: str
    major: int
    minor: int
    sms: int
    l2: int
    smem: int  # what a block may opt in to

    @property
    def properties(self) -> dict[str, int]:
        names = ("major", "minor", "sms", "l2", "smem")
        return {name: getattr(self, name) for name in names}


def _device(name: str, capability: tuple[int, int], sms: int, l2_mb: int, smem: int) -> Device:
    return Device(name=name, major=capability[0], minor=capability[1], sms=sms, l2=l2_mb << 20, smem=smem)


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _device("A100", (8, 0), 108, 40, 166912),
        _device("A10", (8, 6), 72, 6, 101376),
        _device("L40S", (8, 9), 142, 96, 101376),
        _device("H100", (9, 0), 132, 50, 232448),
        _device("B200", (10, 0), 148, 126, 232448),
        _device("RTX 5090", (12, 0), 170, 96, 101376),
        _device("GB10", (12, 1), 48, 24, 101376),
    )
}


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of an op: what it is about, and its arguments as JSON."""

    name: str
    op: str
    arguments: dict[str, Any]
    fail: str = ""  # the function of the runtime that fails in it
    elsewhere: str = ""  # the tensor that is on another device

    @property
    def document(self) -> dict[str, Any]:
        return {"op": self.op, "arguments": self.arguments, "fail": self.fail, "elsewhere": self.elsewhere}


def _ints(*shape: int) -> dict[str, Any]:
    return {"shape": list(shape), "dtype": "int32"}


def _mask(mask: str) -> dict[str, Any]:
    if mask == "local":
        return {"window_size_left": 100, "window_size_right": 0}
    return {"is_causal": True} if mask == "causal" else {}


def _forward(
    *,
    dtype: str,
    dim: int,
    mask: str,
    mode: str,
    splits: int,
    softcap: float,
    shape: tuple[int, int, int],
    pack: bool | None = None,
) -> Call:
    """`mode` is how K and V are given; `shape` is batch, rows of Q, rows of K; `pack` is None where it is left open."""
    batch, rows, keys = shape
    kind = DTYPES[dtype]

    def tensor(*size: int) -> dict[str, Any]:
        return {"shape": list(size), "dtype": kind}

    heads, groups = 8, 2
    arguments: dict[str, Any] = {"q": tensor(batch, rows, heads, dim)}
    cache = tensor(batch, keys, groups, dim)
    if "paged" in mode:
        cache = tensor(batch * keys // 64, 64, groups, dim)
        arguments["page_table"] = _ints(batch, keys // 64)
    if mode == "packed":
        arguments["q"] = tensor(batch * rows, heads, dim)
        cache = tensor(batch * keys, groups, dim)
        arguments |= {"cu_seqlens_q": _ints(batch + 1), "cu_seqlens_k": _ints(batch + 1)}
        arguments |= {"max_seqlen_q": rows, "max_seqlen_k": keys}
    if "append" in mode:
        arguments |= {"k_new": tensor(batch, rows, groups, dim), "v_new": tensor(batch, rows, groups, dim)}
    if mode not in ("dense", "packed", "paged whole"):
        arguments["seqused_k"] = _ints(batch)
    arguments |= {"k": cache, "v": cache, "num_splits": splits, "softcap": softcap, **_mask(mask)}
    arguments |= {} if pack is None else {"pack_gqa": pack}
    words = [f"fwd hd{dim}", dtype, mask, mode, f"splits={splits}" if splits else "splits auto"]
    words += [f"b{batch} q{rows} k{keys}"] + (["softcap"] if softcap else [])
    words += [] if pack is None else [f"pack_gqa={pack}"]
    return Call(name=" ".join(words), op="fwd", arguments=arguments)


def _backward(*, dtype: str, dim: int, mask: str, packed: bool, heads: tuple[int, int], softcap: float) -> Call:
    batch, rows = 2, 300
    lead = [batch * rows] if packed else [batch, rows]
    query = {"shape": [*lead, heads[0], dim], "dtype": DTYPES[dtype]}
    keys = {"shape": [*lead, heads[1], dim], "dtype": DTYPES[dtype]}
    lse = [heads[0], batch * rows] if packed else [batch, heads[0], rows]
    arguments: dict[str, Any] = {"dout": query, "q": query, "k": keys, "v": keys, "out": query}
    arguments |= {"softmax_lse": {"shape": lse, "dtype": "float32"}, "softcap": softcap, **_mask(mask)}
    if packed:
        arguments |= {"cu_seqlens_q": _ints(batch + 1), "cu_seqlens_k": _ints(batch + 1)}
        arguments |= {"max_seqlen_q": rows, "max_seqlen_k": rows}
    words = [f"bwd hd{dim}", dtype, mask, "packed" if packed else "dense", f"{heads[0]}/{heads[1]} heads"]
    return Call(name=" ".join(words + (["softcap"] if softcap else [])), op="bwd", arguments=arguments)


def _with_v(call: Call, dim_v: int) -> Call:
    """A forward call whose V has another head dim."""
    values = {name: call.arguments[name] for name in ("v", "v_new") if name in call.arguments}
    values = {name: {**given, "shape": [*given["shape"][:-1], dim_v]} for name, given in values.items()}
    return replace(call, name=f"{call.name} dv={dim_v}", arguments=call.arguments | values)


def _in_e4m3(call: Call, tensors: str, feature: str) -> Call:
    """A forward call whose Q, K or V, as far as they are among `tensors`, are e4m3, with scales by batch and head."""
    given = call.arguments
    batch = given["cu_seqlens_q"]["shape"][0] - 1 if "cu_seqlens_q" in given else given["q"]["shape"][0]
    scale = {"shape": [batch, given["k"]["shape"][-2]], "dtype": "float32"}
    made = {name: {**given[name], "dtype": "float8_e4m3fn"} for name in tensors}
    made |= {f"{name}_descale": scale for name in "qkv"}
    return replace(call, name=f"{call.name} {feature}", arguments=given | made)


def _of_e4m3(call: Call, chosen: Selection, dtype: str, mode: str) -> Iterator[Call]:
    """The same call for the mma.sync kernels that read e4m3. New keys are written before these are called."""
    if chosen.family is Family.SM90 or "append" in mode:
        return
    if chosen.has("kv8"):
        yield _in_e4m3(call, "kv", "kv8")
    if chosen.has("fp8") and dtype == "bf16":  # as the output is, whatever other types there are
        yield _in_e4m3(call, "qkv", "fp8")


def masks(chosen: Selection) -> tuple[str, ...]:
    return ("full", "causal", "local") if chosen.has("local") else ("full", "causal")


def modes(chosen: Selection) -> tuple[str, ...]:
    """The ways of giving K and V. `used`: batches of which only a part is; `whole`: all pages are full."""
    found = ["dense"]
    if chosen.has("varlen"):
        found += ["packed", "used", "cache"]
        found += ["append"] if chosen.has("append") else []
        found += ["paged", "paged whole"] if chosen.has("paged") else []
        found += ["paged append"] if chosen.has("paged") and chosen.has("append") else []
    return tuple(found)


def calls(chosen: Selection) -> Iterator[Call]:
    """Calls that reach every kernel of a selection, and the sizes at which the host code decides something."""
    kinds = [mode for mode in modes(chosen) if mode != "used"]  # to the host code that is `cache` with lengths of Q
    caps = (0.0, *((30.0,) if chosen.has("softcap") else ()))
    splits = (0, 1, *((3,) if chosen.has("split") else ()))
    # Small head dims are rounded up: they must reach the kernels of the next larger one.
    dims = sorted({*chosen.head_dims, *((16, 32) if min(chosen.head_dims) == 64 else ())})
    shapes = ((2, 128, 512), (1, 1, 8192))
    # Below Hopper a group's heads are always packed; there, both have kernels, and a heuristic chooses if nobody says.
    hopper = chosen.family is Family.SM90
    packs = (None, True, False) if hopper else (None,)
    kept = () if hopper else forwards(chosen)
    pairs = sorted({(item.head_dim, item.head_dim_v) for item in kept if item.head_dim != item.head_dim_v})
    dtypes = [dtype for dtype in chosen.dtypes if dtype in DTYPES]
    every = product(dims, dtypes, masks(chosen), kinds, splits, caps, shapes, packs)
    for dim, dtype, mask, mode, count, cap, shape, pack in every:
        made = _forward(dtype=dtype, dim=dim, mask=mask, mode=mode, splits=count, softcap=cap, shape=shape, pack=pack)
        yield made
        beside = [dim_v for known, dim_v in pairs if known == dim and not cap]
        # Kernels for a V of more than 256 columns append nothing.
        yield from (_with_v(made, dim_v) for dim_v in beside if dim_v <= 256 or "append" not in mode)
        yield from _of_e4m3(made, chosen, dtype, mode)
    packed = (False, True) if chosen.has("varlen") else (False,)
    ordered = (False, True) if chosen.has("deterministic") and not hopper else (False,)
    if chosen.has("backward"):
        backwards = product(dims, dtypes, masks(chosen), packed, ((4, 4), (8, 2)), caps, ordered)
        for dim, dtype, mask, pack, heads, cap, order in backwards:
            made = _backward(dtype=dtype, dim=dim, mask=mask, packed=pack, heads=heads, softcap=cap)
            more = {"deterministic": True} if order else {}
            yield replace(made, name=made.name + " deterministic" * order, arguments=made.arguments | more)


def failing(chosen: Selection, function: str) -> Call:
    """A plain call in which a function of the runtime reports an error."""
    call = _forward(
        dtype=chosen.dtypes[0], dim=chosen.head_dims[0], mask="full", mode="dense", splits=1, softcap=0.0,
        shape=(1, 128, 128),
    )  # fmt: skip
    return Call(name=f"{call.name}, {function} fails", op=call.op, arguments=call.arguments, fail=function)
