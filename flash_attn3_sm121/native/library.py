"""The family libraries of this install: found by their build facts, loaded on first need, never half-loaded.

Finding them reads small JSON files. Loading one maps the shared library and registers its ops under its own
namespace (`flash_attn3_sm8x`, ...); a failure is a NativeLoadError that carries the cause.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flash_attn3_sm121.call import schemas
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.errors import NativeLoadError
from flash_attn3_sm121.native.buildfacts import BuildFacts
from flash_attn3_sm121.native.location import locate

if TYPE_CHECKING:
    from torch import Tensor

Op = Callable[..., Any]
OPS = ("fwd", "bwd", "fwd_combine", "get_scheduler_metadata")
REQUIRED_OPS = ("fwd", "get_scheduler_metadata")

# A call as the positional arguments of a library's `fwd` op. attrgetter does it in C.
_forward_values: Callable[[ForwardArgs], tuple[Any, ...]] = operator.attrgetter(*schemas.NATIVE_FWD_FIELDS)
_GRADIENTS = ("dq", "dk", "dv")
_backward_values: Callable[[BackwardArgs], tuple[Any, ...]] = operator.attrgetter(
    *(name for name in schemas.NATIVE_BWD_FIELDS if name not in _GRADIENTS)
)
_FIRST_GRADIENT = schemas.NATIVE_BWD_FIELDS.index("dq")  # dk and dv follow
_Call = TypeVar("_Call", ForwardArgs, BackwardArgs)


def run_forward(ops: LoadedOps, args: ForwardArgs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out, lse, out_accum, lse_accum) of a library's forward."""
    results: tuple[Tensor, Tensor, Tensor, Tensor] = ops.fwd(*_forward_values(args))
    return results


def run_backward(ops: LoadedOps, args: BackwardArgs, dq: Tensor, dk: Tensor, dv: Tensor) -> Tensor:
    """Write the gradients into dq, dk and dv; softmax_d (rowsum of dO * O, minus dlse) is returned."""
    assert ops.bwd is not None, "the library lists backward among its features"
    values = _backward_values(args)
    results = ops.bwd(*values[:_FIRST_GRADIENT], dq, dk, dv, *values[_FIRST_GRADIENT:])
    workspaces: dict[str, Tensor] = dict(zip(reversed(schemas.BWD_WORKSPACES), reversed(results), strict=False))
    return workspaces["softmax_d"]


def readable(args: _Call) -> _Call:
    """The same call with tensors that kernels read: their last dimension has stride 1.

    `out` stays as it is, since results must land there. Rotary tables become contiguous as a whole, and so does what
    is read row by row (the sinks; the LSE of a backward and its gradient), in fp32.
    """
    import torch

    forward = isinstance(args, ForwardArgs)
    changed: dict[str, Tensor] = {}
    for name in schemas.FORWARD_TENSORS if forward else schemas.BACKWARD_TENSORS:
        tensor: Tensor | None = getattr(args, name)
        if tensor is None or (forward and name == "out"):
            continue
        if tensor.stride(-1) != 1 or (name in ("rotary_cos", "rotary_sin") and not tensor.is_contiguous()):
            changed[name] = tensor.contiguous()
    for name in ("s_aux",) if forward else ("softmax_lse", "dlse"):
        tensor = getattr(args, name)
        if tensor is not None and not (tensor.dtype == torch.float32 and tensor.is_contiguous()):
            changed[name] = tensor.to(torch.float32).contiguous()
    return replace(args, **changed) if changed else args  # type: ignore[arg-type]


def sink_gradient(args: BackwardArgs, softmax_d: Tensor) -> Tensor:
    """The gradient of the sinks (h,): minus the sum over rows of exp(sink - lse) * delta.

    `softmax_d`, which a library's backward returned, is delta where all sequences are as long as the tensors. Otherwise
    its rows lie apart, and delta is computed anew.
    """
    import torch

    assert args.s_aux is not None
    lse, lengths = args.softmax_lse, (args.cu_seqlens_q, args.cu_seqlens_k, args.seqused_q, args.seqused_k)
    if all(tensor is None for tensor in lengths):
        delta = softmax_d[..., : lse.shape[-1]]
    else:
        delta = (args.dout.float() * args.out.float()).sum(-1).transpose(-1, -2)
        delta = delta if args.dlse is None else delta - args.dlse
    there = lse.isfinite()  # rows past the used ones are not
    share = torch.where(there, (args.s_aux.to(lse.dtype)[:, None] - lse).exp() * delta, torch.zeros_like(lse)).sum(-1)
    return -(share if args.cu_seqlens_q is not None else share.sum(0)).to(args.s_aux.dtype)


# Words in a library's errors about tensors whose place or strides kernels cannot read (csrc/fa3_torch.h, fa3_check.h).
_UNREADABLE = ("multiple of 16 bytes", "for a TMA descriptor", "must be contiguous", "must have contiguous last")
# Errors of calls that are too large: CUDA's, where a grid has more than 65535 sequences; that of `assert_indexed`; and
# that of upstream's host code, where new keys are written and the cache holds fewer keys than there are queries.
_TOO_LARGE = (
    *("cudaErrorInvalidConfiguration", "cudaErrorInvalidValue: invalid argument (kernel launch)"),
    *("more than 32 bits count", "seqlen <= the seqlen of the KV cache"),
)
INDEXED = 2**31  # what upstream's launches multiply in 32 bits must be below it


def is_too_large(error: RuntimeError) -> bool:
    """True if the error says that a call is too large for the kernels."""
    return any(words in str(error) for words in _TOO_LARGE)


def is_refused(error: RuntimeError) -> bool:
    """True if kernels cannot take a call for its size, or for how its tensors lie in memory; the fallback can."""
    return is_too_large(error) or any(words in str(error) for words in _UNREADABLE)


def assert_indexed(args: BackwardArgs, dims: Sequence[int]) -> None:
    """Refuse a backward whose scratch behind dQ, or dK and dV of grouped heads, has strides beyond 32 bits.

    Upstream's launches (`hopper/flash_bwd_launch_template.h`) count in 32 bits: kernels would write far outside it.

    Args:
        dims: the head dims that the library has a backward of.

    Raises:
        RuntimeError: one that `is_too_large` knows.
    """
    most = max(args.q.shape[-1], args.v.shape[-1])
    dim = min((built for built in dims if built >= most), default=most)
    lengths = args.seqused_q is not None or args.seqused_k is not None
    parts = {"dq": (args.q, args.cu_seqlens_q)}
    if args.q.shape[-2] != args.k.shape[-2]:
        parts["dk and dv"] = (args.k, args.cu_seqlens_k)
    for name, (tensor, cu) in parts.items():
        rows = tensor.shape[-3] + 128  # the largest block
        if cu is not None:
            rows += 128 * cu.shape[0]
        elif tensor.shape[0] > 1:
            rows *= max(tensor.shape[-2], tensor.shape[0] if lengths else 1)
        if rows * dim >= INDEXED:
            raise RuntimeError(f"the scratch of {name} takes strides of {rows * dim} numbers, more than 32 bits count")


def assert_room(args: ForwardArgs) -> None:
    """Stop a write past the end of the cache, or a read past the end of the rotary tables, in stream order.

    A row with a negative cache_seqlens is padding: kernels skip it.
    """
    assert args.k_new is not None and args.seqused_k is not None  # validated
    cu = args.cu_seqlens_k_new
    new = args.k_new.shape[1] if cu is None else cu[1:] - cu[:-1]
    assert_room_for(new, args.k, args.page_table, args.seqused_k)
    if args.rotary_cos is not None:
        _assert_angles(args, new)


def assert_room_for(new: Tensor | int, k_cache: Tensor, page_table: Tensor | None, cache_seqlens: Tensor) -> None:
    """The first half of `assert_room`, for callers without a ForwardArgs."""
    import torch

    capacity = k_cache.shape[1] if page_table is None else k_cache.shape[1] * page_table.shape[1]
    torch._assert_async(
        (cache_seqlens + new <= capacity).all(),
        f"KV cache overflow: cache_seqlens + new keys must stay within the capacity of {capacity}",
    )


def _assert_angles(args: ForwardArgs, new: Tensor | int) -> None:
    import torch

    assert args.rotary_cos is not None and args.seqused_k is not None
    first = args.seqused_k if args.seqlens_rotary is None else args.seqlens_rotary
    positions = args.rotary_cos.shape[0]
    inside = (first >= 0) & (first + new <= positions)
    torch._assert_async(
        (inside | (args.seqused_k < 0)).all(),
        f"rotary_cos and rotary_sin hold {positions} positions: rotary_seqlens (or cache_seqlens) + new keys must "
        "stay within them",
    )


def without_padding(args: ForwardArgs) -> ForwardArgs:
    """The same call, its padded rows (cache_seqlens below 0) in the form that kernels skip.

    Kernels skip a row without keys, before and after it is appended to. One new key and -1 make none; where a call
    appends more, the length has to be that much below zero.
    """
    import torch

    lengths, k_new, cu = args.seqused_k, args.k_new, args.cu_seqlens_k_new
    if lengths is None or k_new is None or (cu is None and k_new.shape[1] <= 1):
        return args
    new = k_new.shape[1] if cu is None else cu[1:] - cu[:-1]
    return replace(args, seqused_k=torch.where(lengths < 0, -new, lengths))


def blank_unused_rows(out: Tensor, lse: Tensor, args: ForwardArgs) -> None:
    """Rows past seqused_q are left unwritten by the kernels: make them 0 and -inf, as everywhere else."""
    import torch

    used = args.seqused_q
    assert used is not None
    if args.cu_seqlens_q is None:
        unused = torch.arange(out.shape[1], device=out.device)[None, :] >= used[:, None]
        lse.masked_fill_(unused[:, None, :], float("-inf"))
    else:
        cu = args.cu_seqlens_q
        row = torch.arange(out.shape[0], device=out.device, dtype=cu.dtype)
        owner = (torch.searchsorted(cu, row, right=True) - 1).clamp_(0, used.shape[0] - 1)
        unused = row - cu[owner] >= used[owner]
        lse.masked_fill_(unused[None, :], float("-inf"))
    out.masked_fill_(unused[..., None, None], 0)


def blank_unused_gradients(dq: Tensor, dk: Tensor, dv: Tensor, args: BackwardArgs) -> None:
    """Before a backward: rows past seqused_q and seqused_k, which the kernels leave unwritten, have gradient zero."""
    if args.seqused_q is not None:
        dq.zero_()
    if args.seqused_k is not None:
        dk.zero_()
        dv.zero_()


def metadata_length(call: tuple[Any, ...], *, major: int) -> int:
    """How long upstream's scheduler metadata is, from the arguments of its op in their order.

    One number more is for Hopper's kernels (`major` 9), and for the others where they split keys. Where the number of
    splits is left to these (below 1), they are taken to split, as they do for long caches. `major` 0 is no GPU.
    """
    given = dict(zip(schemas.METADATA_NAMES, call, strict=True))
    left, right, chunk = given["window_size_left"], given["window_size_right"], given["attention_chunk"]
    left = -1 if left >= given["max_seqlen_k"] - 1 else left
    right = -1 if right >= given["max_seqlen_q"] - 1 else right
    causal = given["is_causal"]
    if (given["max_seqlen_q"], left, right, chunk) == (1, -1, -1, 0):
        # One row sees every key. Pages at these head dims have tiles of their own under a causal mask, and keep it.
        causal = causal and given["page_size"] is not None and 64 < given["headdim"] <= 128
    is_causal = left < 0 and (causal or right == 0) and chunk == 0
    is_local = (left >= 0 or right >= 0 or causal or chunk > 0) and not is_causal
    vectors = 2 + (not is_local) + (is_causal or is_local)
    rounded: int = (given["batch_size"] + 3) // 4 * 4
    splits = given["num_splits"] > 1 or (major > 0 and given["num_splits"] < 1)
    return rounded * vectors + (major == 9 or splits)


# The arguments that a plan of the work depends on as they are. `_planned_for` adds what it depends on of others.
_PLANNED_BY = (
    *("batch_size", "max_seqlen_q", "max_seqlen_k", "num_heads", "num_heads_k", "headdim", "headdim_v", "page_size"),
    *("is_causal", "window_size_left", "attention_chunk", "has_softcap", "num_splits", "sm_margin"),
)


def _planned_for(given: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments that two calls must share for one scheduler metadata to serve both. Their lengths may differ."""
    return (
        *(given[name] for name in _PLANNED_BY),
        0 if given["is_causal"] else given["window_size_right"],
        given["qkv_dtype"].itemsize,  # tiles of e4m3 have other sizes, and so other splits
        given["max_seqlen_k_new"] > 0,
        *(given[name] is not None for name in ("cu_seqlens_q", "seqused_q")),
        given["pack_gqa"] is False,  # it counts rows without groups then, and no kernel that splits keys does
    )


def mark_native_metadata(metadata: Tensor, call: tuple[Any, ...]) -> Tensor:
    """Remember that a kernel wrote this scheduler metadata, and for which calls."""
    metadata._fa3_native = _planned_for(dict(zip(schemas.METADATA_NAMES, call, strict=True)))  # type: ignore[attr-defined]
    return metadata


def is_native_metadata(metadata: Tensor, args: ForwardArgs) -> bool:
    """True if a kernel wrote the scheduler metadata for calls like this one.

    Metadata of another call has other numbers of splits, or other entries.
    """
    made_for = getattr(metadata, "_fa3_native", None)
    if made_for is None or args.seqused_k is None:
        return False
    q, k, cu, table = args.q, args.k, args.cu_seqlens_q, args.page_table
    return bool(
        made_for
        == _planned_for(
            {
                "batch_size": q.shape[0] if cu is None else cu.shape[0] - 1,
                "max_seqlen_q": q.shape[1] if cu is None else args.max_seqlen_q,
                "max_seqlen_k": k.shape[1] * (1 if table is None else table.shape[1]),
                "num_heads": q.shape[-2],
                "num_heads_k": k.shape[-2],
                "headdim": q.shape[-1],
                "headdim_v": args.v.shape[-1],
                "page_size": None if table is None else k.shape[1],
                "is_causal": args.causal,
                "window_size_left": args.window_left,
                "window_size_right": args.window_right,
                "attention_chunk": args.attention_chunk,
                "has_softcap": args.softcap > 0,
                "num_splits": args.num_splits,
                "sm_margin": args.sm_margin,
                "qkv_dtype": k.dtype,
                "max_seqlen_k_new": args.k_new is not None,
                "cu_seqlens_q": cu,
                "seqused_q": args.seqused_q,
                "pack_gqa": None,
            }
        )
    )


@dataclass(frozen=True, kw_only=True)
class LoadedOps:
    """The callables of one loaded library. An op that the build left out is None."""

    fwd: Callable[..., Any]
    bwd: Callable[..., Any] | None
    fwd_combine: Callable[..., Any] | None
    get_scheduler_metadata: Callable[..., Any]


def load_ops(path: Path, facts: BuildFacts) -> LoadedOps:
    """Map the library and look its ops up; raises NativeLoadError with the linker's or torch's own words."""
    import torch

    registered = torch._C._jit_get_schemas_for_operator(f"{facts.namespace}::fwd")
    if registered and str(path.resolve()) not in torch.ops.loaded_libraries:  # torch would end the process
        raise NativeLoadError(
            f"cannot load {path}: another file registered the ops of {facts.namespace} in this process",
            hint="start Python anew",
        )
    try:
        torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise NativeLoadError(
            f"cannot load {path}: {error}",
            hint=f"it is built for {facts.platform}, CUDA {facts.cuda}; see `flash-attn3 doctor`",
        ) from error
    namespace = getattr(torch.ops, facts.namespace)
    found: dict[str, Callable[..., Any] | None] = {}
    for name in OPS:
        # torch raises AttributeError for an op that was never registered; anything else is a real failure.
        packet = getattr(namespace, name, None)
        found[name] = None if packet is None else packet.default
    missing = [name for name in REQUIRED_OPS if found[name] is None]
    other = [
        name
        for name, op in found.items()
        if op is not None and len(op._schema.arguments) != len(schemas.argument_names(schemas.NATIVE[name]))  # type: ignore[attr-defined]
    ]
    if missing or other:
        raise NativeLoadError(
            f"{path} was loaded and registers no op {', '.join(missing or other)} in namespace {facts.namespace}"
            + (" with the arguments that this version gives it" if other and not missing else ""),
            hint="the library and its facts file do not belong together; reinstall the wheel",
        )
    return LoadedOps(**found)  # type: ignore[arg-type]


@dataclass(kw_only=True)
class Library:
    """One family library. `opener` is the way to load it (tests pass their own)."""

    facts: BuildFacts
    path: Path
    opener: Callable[[Path, BuildFacts], LoadedOps] = load_ops
    error: NativeLoadError | None = None
    _ops: LoadedOps | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ops(self) -> LoadedOps:
        """The loaded ops; a failed load is remembered and raised again with the same cause."""
        if self._ops is not None:
            return self._ops
        with self._lock:
            if self.error is not None:
                raise self.error
            if self._ops is None:
                try:
                    self._ops = self.opener(self.path, self.facts)
                except NativeLoadError as error:
                    self.error = error
                    raise
            return self._ops


def find(folder: Path) -> tuple[Library, ...]:
    """Every library with a facts file in a folder; raises FactsError where a facts file is not readable."""
    found = []
    for path in sorted(folder.glob("*.json")):
        if path.name in ("executed.json", "provenance.json", "verify.json"):
            continue
        facts = BuildFacts.read(path)
        found.append(Library(facts=facts, path=folder / facts.library))
    return tuple(found)


@functools.cache
def installed() -> tuple[Library, ...]:
    """The libraries of this very install, or, in a source tree, of the installed wheel."""
    return find(locate().folder)
