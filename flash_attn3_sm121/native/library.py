"""The family libraries of this install: found by their build facts, loaded on first need, never half-loaded.

Finding them reads small JSON files. Loading one maps the shared library and registers its ops under its own
namespace (`flash_attn3_sm8x`, ...); a failure is a NativeLoadError that carries the cause.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.errors import NativeLoadError
from flash_attn3_sm121.native.buildfacts import BuildFacts

# Not resolved: in the Hugging Face cache every file is a link into a flat folder, and `lib` lies beside the link.
if TYPE_CHECKING:
    from torch import Tensor

LIBRARY_FOLDER = Path(__file__).absolute().parent.parent / "lib"
Op = Callable[..., Any]
OPS = ("fwd", "bwd", "fwd_combine", "get_scheduler_metadata")
REQUIRED_OPS = ("fwd", "get_scheduler_metadata")

FORWARD_TENSORS = (
    "q",
    "k",
    "v",
    "k_new",
    "v_new",
    "qv",
    "out",
    "cu_seqlens_q",
    "cu_seqlens_k",
    "cu_seqlens_k_new",
    "seqused_q",
    "seqused_k",
    "page_table",
    "kv_batch_idx",
    "leftpad_k",
    "rotary_cos",
    "rotary_sin",
    "seqlens_rotary",
    "q_descale",
    "k_descale",
    "v_descale",
    "s_aux",
)
BACKWARD_TENSORS = (
    "dout",
    "q",
    "k",
    "v",
    "out",
    "softmax_lse",
    "dlse",
    "qv",
    "cu_seqlens_q",
    "cu_seqlens_k",
    "seqused_q",
    "seqused_k",
    "s_aux",
)
# A call as the 34 positional arguments of upstream's `fwd` op. attrgetter does it in C.
FORWARD_POSITIONAL: Callable[[ForwardArgs], tuple[Any, ...]] = operator.attrgetter(
    *FORWARD_TENSORS[:12],
    "max_seqlen_q",
    "max_seqlen_k",
    *FORWARD_TENSORS[12:-1],
    "softmax_scale",
    "causal",
    "window_left",
    "window_right",
    "attention_chunk",
    "softcap",
    "rotary_interleaved",
    "scheduler_metadata",
    "num_splits",
    "pack_gqa",
    "sm_margin",
)


def backward_positional(args: BackwardArgs, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Any, ...]:
    """A call as the 22 positional arguments of upstream's `bwd` op."""
    lengths = (args.cu_seqlens_q, args.cu_seqlens_k, args.seqused_q, args.seqused_k)
    mask = (args.softmax_scale, args.causal, args.window_left, args.window_right, args.softcap)
    return (
        *(args.dout, args.q, args.k, args.v, args.out, args.softmax_lse, dq, dk, dv, *lengths),
        *(args.max_seqlen_q, args.max_seqlen_k, *mask, args.deterministic, args.sm_margin),
    )


def make_contiguous(args: ForwardArgs | BackwardArgs) -> None:
    """Kernels want unit stride in the last dimension of what they read; `out` is the caller's to get right."""
    forward = isinstance(args, ForwardArgs)
    for name in FORWARD_TENSORS if forward else BACKWARD_TENSORS:
        tensor: Tensor | None = getattr(args, name)
        if tensor is not None and tensor.stride(-1) != 1 and not (forward and name == "out"):
            setattr(args, name, tensor.contiguous())
    if isinstance(args, BackwardArgs):
        args.softmax_lse = args.softmax_lse.contiguous()  # the kernels assume its strides


# What a library says of tensors that its kernels cannot read 16 bytes at a time (csrc/fa3_torch.h, csrc/fa3_check.h).
_UNREADABLE = ("multiple of 16 bytes", "for a TMA descriptor")


def is_unreadable(error: RuntimeError) -> bool:
    """Whether a library refused a call for where its tensors lie in memory; nothing was launched then."""
    return any(words in str(error) for words in _UNREADABLE)


def assert_room(k_cache: Tensor, pages: Tensor | None, seqlens: Tensor, new: Tensor | int) -> None:
    """Stop a write past the end of the cache, in stream order before it happens and without waiting for the device."""
    import torch

    capacity = k_cache.shape[1] if pages is None else k_cache.shape[1] * pages.shape[1]
    torch._assert_async(
        ((seqlens >= 0) & (seqlens + new <= capacity)).all(),
        f"KV cache overflow: cache_seqlens + new keys must stay within the capacity of {capacity}",
    )


def assert_angles(args: ForwardArgs, new: Tensor | int) -> None:
    """The same for reads past the end of the rotary tables: kernels do not know how long these are."""
    import torch

    assert args.rotary_cos is not None and args.seqused_k is not None
    first = args.seqused_k if args.seqlens_rotary is None else args.seqlens_rotary
    positions = args.rotary_cos.shape[0]
    torch._assert_async(
        ((first >= 0) & (first + new <= positions)).all(),
        f"rotary_cos and rotary_sin hold {positions} positions: rotary_seqlens (or cache_seqlens) + new keys must "
        "stay within them",
    )


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


def metadata_length(call: tuple[Any, ...], *, arch: int) -> int:
    """How long upstream's scheduler metadata is, from the arguments of its op in their order."""
    batch, max_q, max_k, causal, left, right = call[0], call[1], call[2], call[16], call[17], call[18]
    splits = call[21]
    left = -1 if left < 0 or left >= max_k - 1 else left
    right = 0 if causal else (-1 if right < 0 or right >= max_q - 1 else right)
    is_causal = left < 0 and right == 0
    is_local = (left >= 0 or right >= 0) and not is_causal
    vectors = 2 + (not is_local) + (is_causal or is_local)
    rounded: int = (batch + 3) // 4 * 4
    return rounded * vectors + (arch >= 90 or splits > 1)


def mark_native_metadata(metadata: Tensor) -> Tensor:
    """Remember that a kernel wrote this scheduler metadata."""
    metadata._fa3_native = True  # type: ignore[attr-defined]
    return metadata


def is_native_metadata(metadata: Tensor) -> bool:
    return getattr(metadata, "_fa3_native", False)


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
    if missing:
        raise NativeLoadError(
            f"{path} was loaded and registers no op {', '.join(missing)} in namespace {facts.namespace}",
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
        if path.name in ("provenance.json", "verify.json"):
            continue
        facts = BuildFacts.read(path)
        found.append(Library(facts=facts, path=folder / facts.library))
    return tuple(found)


@functools.cache
def installed() -> tuple[Library, ...]:
    """The libraries of this very install."""
    return find(LIBRARY_FOLDER)
