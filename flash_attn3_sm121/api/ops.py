"""The ops: upstream's public four in `flash_attn_3`, and our own functional ones that compiled programs see.

`register()` does it once per process, also where this code is loaded twice: kernel loaders run a package's code again
under another module name, and torch refuses a second definition. Where an upstream `flash_attn_3`
has already registered its ops, those stay, and `owner()` says so.
"""

from __future__ import annotations

import sys
import threading
import types
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flash_attn3_sm121._version import __version__
from flash_attn3_sm121.call import backend, schemas
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs, default_scale
from flash_attn3_sm121.call.validation import check_backward, check_combine, check_forward, check_gradients, out_dtype
from flash_attn3_sm121.dispatch.engine import engine
from flash_attn3_sm121.errors import CallError, pip_command

_MARK = "_flash_attn3_sm121_process"  # a module of this name in sys.modules outlives every copy of this package
_DEVICES = ("CPU", "CUDA", "MPS")
_LOCK = threading.Lock()

METADATA_DEFAULTS = schemas.defaults(schemas.PUBLIC["get_scheduler_metadata"])


def lse_shape(q: Tensor, cu_seqlens_q: Tensor | None) -> tuple[int, ...]:
    """(b, h, sq), or (h, total_q) for packed queries."""
    return (q.shape[1], q.shape[0]) if cu_seqlens_q is not None else (q.shape[0], q.shape[2], q.shape[1])


def empty_like_results(args: ForwardArgs) -> tuple[Tensor, Tensor]:
    """What a forward call returns, without the numbers: for fake tensors."""
    check_forward(args)
    out = args.q.new_empty((*args.q.shape[:-1], args.v.shape[-1]), dtype=out_dtype(args.q))
    return out, args.q.new_empty(lse_shape(args.q, args.cu_seqlens_q), dtype=torch.float32)


# -- our own ops


def _forward_args(values: Sequence[Any]) -> ForwardArgs:
    given = dict(zip(schemas.FORWARD_FIELDS, values, strict=True))
    del given["deterministic"]  # only the backward asks for it
    return ForwardArgs(**given)


def _forward(*values: Any) -> tuple[Tensor, Tensor]:
    out, lse, *_ = engine().forward(_forward_args(values))
    return out.contiguous(), lse.contiguous()


def _forward_fake(*values: Any) -> tuple[Tensor, Tensor]:
    return empty_like_results(_forward_args(values))


def _append(*values: Any) -> tuple[Tensor, Tensor]:
    out, lse, *_ = engine().forward(ForwardArgs(**dict(zip(schemas.APPEND_FIELDS, values, strict=True))))
    return out.contiguous(), lse.contiguous()


def _append_fake(*values: Any) -> tuple[Tensor, Tensor]:
    return empty_like_results(ForwardArgs(**dict(zip(schemas.APPEND_FIELDS, values, strict=True))))


def _backward(*values: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    args = BackwardArgs(**dict(zip(schemas.BACKWARD_FIELDS, values, strict=True)))
    result = engine().backward(args)
    ds_aux = result.ds_aux if result.ds_aux is not None else args.q.new_empty(0)
    return result.dq.contiguous(), result.dk.contiguous(), result.dv.contiguous(), ds_aux


def _backward_fake(*values: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    args = BackwardArgs(**dict(zip(schemas.BACKWARD_FIELDS, values, strict=True)))
    check_backward(args)
    dq, dk, dv = (tensor.new_empty(tensor.shape) for tensor in (args.q, args.k, args.v))
    return dq, dk, dv, args.q.new_empty(0) if args.s_aux is None else args.s_aux.new_empty(args.s_aux.shape)


def _combine(out_partial: Tensor, lse_partial: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    out, lse = engine().combine(out_partial, lse_partial, None, dtype)
    return out.contiguous(), lse.contiguous()


def _combine_fake(out_partial: Tensor, lse_partial: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    check_combine(out_partial, lse_partial, None)
    out = out_partial.new_empty(out_partial.shape[1:], dtype=dtype or torch.float32)
    return out, lse_partial.new_empty(lse_partial.shape[1:])


def functional_backward(args: BackwardArgs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dq, dk, dv, ds_aux) through the op that autograd and compilers see; ds_aux is empty without sinks."""
    values = [getattr(args, name) for name in schemas.BACKWARD_FIELDS]  # compilers trace no attrgetter
    gradients: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.flash_attn3_sm121.backward(*values)
    return gradients


GRADIENTS = ("dq", "dk", "dv")
SAVED = ("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "seqused_q", "seqused_k", "s_aux")
FORWARD_ONLY = ("qv", "page_table", "kv_batch_idx", "leftpad_k", "k_new")
KEPT = tuple(name for name in schemas.FORWARD_FIELDS if name in schemas.BACKWARD_FIELDS and name not in SAVED)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    keep_for_backward(ctx, dict(zip(schemas.FORWARD_FIELDS, inputs, strict=True)), output)


def keep_for_backward(ctx: Any, given: dict[str, Any], output: tuple[Tensor, Tensor]) -> None:
    """Save in `ctx` what `backward_arguments` needs of a forward call with these arguments and results."""
    ctx.save_for_backward(*(given[name] for name in SAVED), *output)
    ctx.kept = {name: given[name] for name in KEPT}
    ctx.forward_only = [name for name in FORWARD_ONLY if given.get(name) is not None]
    ctx.scope = backend.scoped()
    ctx.set_materialize_grads(False)  # an unused LSE then has no gradient at all, instead of zeros to compute with


def backward_arguments(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> dict[str, Any]:
    """The backward call that belongs to a saved forward call."""
    if ctx.forward_only:
        raise CallError(f"{', '.join(ctx.forward_only)}: forward only, there is no gradient through this call")
    saved = dict(zip((*SAVED, "out", "softmax_lse"), ctx.saved_tensors, strict=True))
    if dout is None:
        dout = torch.zeros_like(saved["out"])
    return {"dout": dout, "dlse": dlse, **saved, **ctx.kept}


def _differentiate(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    return differentiate_through(torch.ops.flash_attn3_sm121.backward, ctx, dout, dlse)


def differentiate_through(
    backward: Any, ctx: Any, dout: Tensor | None, dlse: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The gradients of every argument of the op `forward`, computed by something with the arguments of `backward`."""
    given = backward_arguments(ctx, dout, dlse)
    with backend.within(ctx.scope):
        dq, dk, dv, ds_aux = backward(*(given[name] for name in schemas.BACKWARD_FIELDS))
    gradients: dict[str, Tensor | None] = {"q": dq, "k": dk, "v": dv}
    if given["s_aux"] is not None:
        gradients["s_aux"] = ds_aux
    return tuple(gradients.get(name) for name in schemas.FORWARD_FIELDS)


def no_double_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    raise CallError(
        "double backward is not supported: the attention backward has no derivative of its own",
        hint="use torch.nn.attention.sdpa_kernel(SDPBackend.MATH) with F.scaled_dot_product_attention for that",
    )


# -- upstream's public ops


def _fwd_args(values: Sequence[Any]) -> ForwardArgs:
    """The dispatcher leaves out trailing arguments that equal their defaults; the op's defaults are not our fields'."""
    given = {"rotary_interleaved": False, "num_splits": 0, **dict(zip(schemas.FWD_FIELDS, values, strict=False))}
    if given.get("softmax_scale") is None:
        given["softmax_scale"] = default_scale(given["q"])  # the op, unlike the functions, does not count qv in
    return ForwardArgs(**given)


def no_accumulators(q: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(0, dtype=torch.float32), q.new_empty(0, dtype=torch.float32)


def _public_fwd(*values: Any) -> tuple[Tensor, ...]:
    args = _fwd_args(values)
    out, lse, out_accum, lse_accum = engine().forward(args)
    if out_accum is None or lse_accum is None:
        out_accum, lse_accum = no_accumulators(args.q)
    return out, lse, out_accum, lse_accum


def _public_fwd_fake(*values: Any) -> tuple[Tensor, ...]:
    args = _fwd_args(values)
    out, lse = empty_like_results(args)
    return (args.out if args.out is not None else out, lse, *no_accumulators(args.q))


def backward_call(fields: Sequence[str], values: Sequence[Any]) -> tuple[BackwardArgs, tuple[Tensor | None, ...]]:
    """A backward call, and where its gradients go (dq, dk, dv), from an op's arguments, which are these fields."""
    given = dict(zip(fields, values, strict=False))
    into = tuple(given.pop(name, None) for name in GRADIENTS)
    if given.get("softmax_scale") is None:
        given["softmax_scale"] = default_scale(given["q"])
    return BackwardArgs(**given), into


def row_sums(out: Tensor, dout: Tensor) -> Tensor:
    """softmax_d, in the layout of the LSE."""
    return (out.float() * dout.float()).sum(-1).transpose(-1, -2).contiguous()


def written_gradients(
    args: BackwardArgs, given: Sequence[Tensor | None]
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Write the gradients into those of `given` (dq, dk, dv) that are there; these, and softmax_d."""
    dq, dk, dv = (
        torch.empty_like(x) if new is None else new for new, x in zip(given, (args.q, args.k, args.v), strict=True)
    )
    check_gradients(args, (dq, dk, dv))
    result = engine().backward(args, into=(dq, dk, dv))
    softmax_d = row_sums(args.out, args.dout) if result.softmax_d is None else result.softmax_d
    return (dq, dk, dv), softmax_d


def like_the_lse(softmax_d: Tensor, args: BackwardArgs) -> Tensor:
    """softmax_d as compiled programs are told of it: kernels pad its rows, and set sequences of any length apart."""
    lengths = (args.cu_seqlens_q, args.cu_seqlens_k, args.seqused_q, args.seqused_k)
    if softmax_d.shape != args.softmax_lse.shape and any(tensor is not None for tensor in lengths):
        return row_sums(args.out, args.dout)
    return softmax_d[..., : args.softmax_lse.shape[-1]].contiguous()


def _public_bwd(*values: Any) -> tuple[Tensor, ...]:
    args, given = backward_call(schemas.BWD_FIELDS, values)
    _, softmax_d = written_gradients(args, given)
    return (like_the_lse(softmax_d, args), *_empty_workspaces(args.q))


def _empty_workspaces(q: Tensor) -> list[Tensor]:
    """What stands for the workspaces of upstream's kernels behind softmax_d, which callers do not read."""
    return [q.new_empty(0, dtype=torch.float32) for _ in schemas.BWD_WORKSPACES[1:]]


def _public_bwd_fake(*values: Any) -> tuple[Tensor, ...]:
    args, _ = backward_call(schemas.BWD_FIELDS, values)
    return (empty_row_sums(args), *_empty_workspaces(args.q))


def empty_row_sums(args: BackwardArgs) -> Tensor:
    """softmax_d of a backward call, without the numbers: for fake tensors."""
    check_backward(args)
    return args.q.new_empty(lse_shape(args.q, args.cu_seqlens_q), dtype=torch.float32)


def _public_combine(
    out_partial: Tensor, lse_partial: Tensor, out: Tensor | None = None, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    return engine().combine(out_partial, lse_partial, out, dtype)


def _public_combine_fake(
    out_partial: Tensor, lse_partial: Tensor, out: Tensor | None = None, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    fresh, lse = _combine_fake(out_partial, lse_partial, dtype)
    return (fresh if out is None else out), lse


def _metadata_call(values: Sequence[Any]) -> tuple[Any, ...]:
    """All arguments: the dispatcher leaves out trailing ones that equal their defaults."""
    return (*values, *(METADATA_DEFAULTS[name] for name in schemas.METADATA_NAMES[len(values) :]))


def _public_metadata(*values: Any) -> Tensor:
    return engine().scheduler_metadata(_metadata_call(values))


def _public_metadata_fake(*values: Any) -> Tensor:
    lengths: Tensor = values[schemas.METADATA_NAMES.index("seqused_k")]
    return lengths.new_empty(engine().metadata_length(_metadata_call(values)), dtype=torch.int32)


# -- registration


def exists(qualified: str) -> bool:
    return bool(torch._C._jit_get_schemas_for_operator(qualified))


def _define(library: torch.library.Library, table: dict[str, str], kernels: dict[str, tuple[Any, Any]]) -> None:
    for name, schema in table.items():
        tags = (torch.Tag.pt2_compliant_tag,) if library.ns == schemas.OWN_NAMESPACE else ()
        library.define(name + schema, tags=tags)  # type: ignore[no-untyped-call]
        kernel, fake = kernels[name]
        for device in _DEVICES:
            library.impl(name, kernel, device)  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"{library.ns}::{name}", fake, lib=library)


def register() -> types.ModuleType:
    """Register everything unless this process already has it; the record of who did."""
    with _LOCK:
        record = sys.modules.get(_MARK)
        if record is not None:
            return record
        record = types.ModuleType(_MARK, "Who registered the ops of flash_attn3_sm121 in this process.")
        own = torch.library.Library(schemas.OWN_NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
        _define(
            own,
            schemas.OWN,
            {
                "forward": (_forward, _forward_fake),
                "append": (_append, _append_fake),
                "backward": (_backward, _backward_fake),
                "combine": (_combine, _combine_fake),
            },
        )
        torch.library.register_autograd(
            f"{schemas.OWN_NAMESPACE}::forward", _differentiate, setup_context=setup_context, lib=own
        )
        torch.library.register_autograd(f"{schemas.OWN_NAMESPACE}::backward", no_double_backward, lib=own)
        libraries = [own]
        foreign = exists(f"{schemas.PUBLIC_NAMESPACE}::fwd")
        if not foreign:
            public = torch.library.Library(schemas.PUBLIC_NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
            _define(
                public,
                schemas.PUBLIC,
                {
                    "fwd": (_public_fwd, _public_fwd_fake),
                    "bwd": (_public_bwd, _public_bwd_fake),
                    "fwd_combine": (_public_combine, _public_combine_fake),
                    "get_scheduler_metadata": (_public_metadata, _public_metadata_fake),
                },
            )
            libraries.append(public)
        record.__dict__.update(libraries=libraries, foreign=foreign, version=__version__, file=__file__)
        sys.modules[_MARK] = record
    if foreign:
        warnings.warn(
            f"flash_attn3_sm121: torch.ops.{schemas.PUBLIC_NAMESPACE} belongs to another flash_attn_3 in this process; "
            "clients that call those ops get that one. To have ours: "
            f"{pip_command()} uninstall flash_attn_3",
            RuntimeWarning,
            stacklevel=2,
        )
    return record


def owner() -> str:
    """A sentence that names the package whose code serves `torch.ops.flash_attn_3` in this process."""
    record = register()
    if record.foreign:
        return "another flash_attn_3 (its ops were registered before ours, and stay)"
    return f"flash_attn3_sm121 {record.version} ({record.file})"
