"""The op schemas, in one table: upstream's public ones (library `flash_attn_3`) and our own functional ones.

Upstream's are kept to the letter, aliases included: clients inspect them and call them positionally. Ours are
functional (nothing is returned that aliases an input), which is what torch.compile and torch.export want.

The order of an op's arguments is written here and nowhere else. `*_FIELDS` give it as field names of ForwardArgs and
BackwardArgs; `caller` makes a function of a few arguments that calls an op with each of them at its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

PUBLIC_NAMESPACE = "flash_attn_3"
OWN_NAMESPACE = "flash_attn3_sm121"


def _arguments(text: str) -> tuple[str, ...]:
    """The arguments of a schema, out of lines that group them."""
    return tuple(" ".join(text.split()).split(", "))


_FWD = _arguments(
    """
    Tensor q, Tensor k, Tensor v, Tensor(k_new!)? k_new=None, Tensor(v_new!)? v_new=None, Tensor? q_v=None,
    Tensor(out!)? out=None,
    Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, Tensor? cu_seqlens_k_new=None,
    Tensor? seqused_q=None, Tensor? seqused_k=None, int? max_seqlen_q=None, int? max_seqlen_k=None,
    Tensor? page_table=None, Tensor? kv_batch_idx=None, Tensor? leftpad_k=None,
    Tensor? rotary_cos=None, Tensor? rotary_sin=None, Tensor? seqlens_rotary=None,
    Tensor? q_descale=None, Tensor? k_descale=None, Tensor? v_descale=None,
    float? softmax_scale=None, bool is_causal=False, int window_size_left=-1, int window_size_right=-1,
    int attention_chunk=0, float softcap=0.0, bool is_rotary_interleaved=False,
    Tensor? scheduler_metadata=None, int num_splits=0, bool? pack_gqa=None, int sm_margin=0
    """
)
_BWD = _arguments(
    """
    Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax_lse,
    Tensor(dq!)? dq=None, Tensor(dk!)? dk=None, Tensor(dv!)? dv=None,
    Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None,
    Tensor? seqused_q=None, Tensor? seqused_k=None, int? max_seqlen_q=None, int? max_seqlen_k=None,
    float? softmax_scale=None, bool is_causal=False, int window_size_left=-1, int window_size_right=-1,
    float softcap=0.0, bool deterministic=False, int sm_margin=0
    """
)
_METADATA = _arguments(
    """
    int batch_size, int max_seqlen_q, int max_seqlen_k, int num_heads, int num_heads_k, int headdim, int headdim_v,
    ScalarType qkv_dtype, Tensor seqused_k,
    Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, Tensor? cu_seqlens_k_new=None, Tensor? seqused_q=None,
    Tensor? leftpad_k=None, int? page_size=None, int max_seqlen_k_new=0,
    bool is_causal=False, int window_size_left=-1, int window_size_right=-1, int attention_chunk=0,
    bool has_softcap=False, int num_splits=0, bool? pack_gqa=None, int sm_margin=0
    """
)

# Upstream's 3.0.0 returns these from bwd, and so does our op. The pin, which is older, returns the three gradients too.
BWD_WORKSPACES = ("softmax_d", "softmax_lse_log2", "dq_accum", "dk_accum", "dv_accum")
_BWD_RETURNS = "(Tensor, Tensor, Tensor, Tensor, Tensor)"
_BWD_RETURNS_BEFORE_3_0 = "(Tensor(dq!), Tensor(dk!), Tensor(dv!), Tensor, Tensor, Tensor, Tensor, Tensor)"
PUBLIC: dict[str, str] = {
    "fwd": f"({', '.join(_FWD)}) -> (Tensor(out!), Tensor, Tensor, Tensor)",
    "bwd": f"({', '.join(_BWD)}) -> {_BWD_RETURNS}",
    "fwd_combine": (
        "(Tensor out_partial, Tensor lse_partial, Tensor(out!)? out=None, ScalarType? out_dtype=None)"
        " -> (Tensor(out!), Tensor)"
    ),
    "get_scheduler_metadata": f"({', '.join(_METADATA)}) -> Tensor",
}

# How the arguments of the custom op `_flash_attn_forward` differ from those of `fwd`. Its Python function has no marks.
_IN_PYTHON = {
    "Tensor(k_new!)? k_new=None": "Tensor? k_new=None",
    "Tensor(v_new!)? v_new=None": "Tensor? v_new=None",
    "Tensor? q_v=None": "Tensor? qv=None",
    "Tensor(out!)? out=None": "Tensor? out_=None",
    "bool is_causal=False": "bool causal=False",
    "bool is_rotary_interleaved=False": "bool rotary_interleaved=True",
    "int num_splits=0": "int num_splits=1",
}


def _symbolic(arguments: Iterable[str]) -> str:
    return re.sub(r"\bint\b", "SymInt", ", ".join(arguments))


# Upstream's two custom ops, since 3.0.0, as torch.library.custom_op declares them there.
_BACKWARD_IN_PYTHON = (*_BWD[:6], *_BWD[9:15], *_BWD[6:9], *_BWD[15:])
CUSTOM: dict[str, str] = {
    "_flash_attn_forward": (
        f"({_symbolic(_IN_PYTHON.get(argument, argument) for argument in _FWD)}) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "_flash_attn_backward": f"({_symbolic(_BACKWARD_IN_PYTHON).replace('seqused', 'sequed')}) -> Tensor",
}

# What our libraries' ops take behind upstream's arguments.
_ADDED = {"fwd": "Tensor? s_aux=None", "bwd": "Tensor? dlse=None"}


def with_ours(declared: Mapping[str, str]) -> dict[str, str]:
    """Upstream's op schemas as a family library has them: with the arguments that are ours, behind the others."""
    return {
        name: text.replace(") -> ", f", {_ADDED[name]}) -> ", 1) if name in _ADDED else text
        for name, text in declared.items()
    }


NATIVE = with_ours(PUBLIC)

# `forward` is differentiable in q, k, v and s_aux. SymInt where a compiled program may see a changing number.
_LENGTHS = _arguments(
    "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? seqused_q, Tensor? seqused_k, "
    "SymInt? max_seqlen_q, SymInt? max_seqlen_k"
)
_SCALES = _arguments("Tensor? q_descale, Tensor? k_descale, Tensor? v_descale, Tensor? s_aux")
_MASK = _arguments(
    "float softmax_scale, bool causal, SymInt window_left, SymInt window_right, SymInt attention_chunk, float softcap"
)
_FORWARD = (
    *_arguments("Tensor q, Tensor k, Tensor v, Tensor? qv"),
    *_LENGTHS,
    *_arguments("Tensor? page_table, Tensor? kv_batch_idx, Tensor? leftpad_k"),
    *_SCALES,
    *_MASK,
    *_arguments("Tensor? scheduler_metadata, int num_splits, bool? pack_gqa, bool deterministic, int sm_margin"),
)
_APPEND = (
    *_arguments("Tensor q, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor k_new, Tensor v_new, Tensor? qv"),
    *_arguments("Tensor? cu_seqlens_q, Tensor? cu_seqlens_k_new, Tensor seqused_k, SymInt? max_seqlen_q"),
    *_arguments("Tensor? page_table, Tensor? kv_batch_idx, Tensor? leftpad_k"),
    *_arguments("Tensor? rotary_cos, Tensor? rotary_sin, Tensor? seqlens_rotary"),
    *_SCALES,
    *_MASK,
    *_arguments("bool rotary_interleaved, Tensor? scheduler_metadata, int num_splits, bool? pack_gqa, int sm_margin"),
)
_BACKWARD = (
    *_arguments("Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax_lse"),
    *_LENGTHS,
    *_arguments("Tensor? s_aux"),
    *_MASK,
    *_arguments("bool deterministic, int sm_margin"),
)

OWN: dict[str, str] = {
    "forward": f"({', '.join(_FORWARD)}) -> (Tensor out, Tensor softmax_lse)",
    "append": f"({', '.join(_APPEND)}) -> (Tensor out, Tensor softmax_lse)",
    "backward": f"({', '.join(_BACKWARD)}) -> (Tensor dq, Tensor dk, Tensor dv, Tensor ds_aux)",
    "combine": "(Tensor out_partial, Tensor lse_partial, ScalarType? out_dtype) -> (Tensor out, Tensor softmax_lse)",
}


def one_spelling(schema: str) -> str:
    """A schema without space around commas and equals signs, and none doubled: these mean nothing."""
    return re.sub(r"\s+", " ", re.sub(r"\s*([,=])\s*", r"\1", schema)).strip()


def differences(declared: Mapping[str, str], expected: Mapping[str, str] = PUBLIC) -> list[str]:
    """How the op schemas of a library or source differ from those that the Python interface calls, op by op.

    Args:
        declared: name -> schema, with or without the name in front.
        expected: the same. The interface calls `PUBLIC` and `NATIVE`, and takes either form of what `bwd` returns.

    Returns:
        A line a difference, which names the op and the argument; empty where there is none.
    """
    called = expected is PUBLIC or expected is NATIVE
    lines = []
    for op in sorted({*declared, *expected}):
        if op not in declared or op not in expected:
            lines.append(f"{op}: {'missing' if op in expected else 'unknown'}")
            continue
        (theirs, their_returns), (ours, our_returns) = _split(declared[op]), _split(expected[op])
        for index in range(max(len(theirs), len(ours))):
            left = theirs[index] if index < len(theirs) else "nothing"
            right = ours[index] if index < len(ours) else "nothing"
            if left != right:
                lines.append(f"{op}: argument {index + 1} is {left!r} instead of {right!r}")
                break  # those after it are shifted, most likely
        older = op == "bwd" and called and their_returns == one_spelling(_BWD_RETURNS_BEFORE_3_0)
        if their_returns != our_returns and not older:
            lines.append(f"{op}: returns {their_returns} instead of {our_returns}")
    return lines


def _split(schema: str) -> tuple[list[str], str]:
    """The arguments and the returns of a schema."""
    inside, _, returns = one_spelling(schema).partition(") -> ")
    return re.split(r",(?![^(]*\))", inside.partition("(")[2]), returns


def argument_names(schema: str) -> tuple[str, ...]:
    """The names of a schema's arguments, in order."""
    return tuple(declaration.split("=")[0].split()[-1] for declaration in _declarations(schema))


def _declarations(schema: str) -> list[str]:
    return schema[1 : schema.index(") -> ")].split(", ")


def defaults(schema: str) -> dict[str, Any]:
    """The arguments of a schema that have a default, with it."""
    constants = {"None": None, "False": False, "True": True}
    found: dict[str, Any] = {}
    for name, declaration in zip(argument_names(schema), _declarations(schema), strict=True):
        _, there, text = declaration.partition("=")
        if there:
            found[name] = constants[text] if text in constants else float(text) if "." in text else int(text)
    return found


def caller(op: Callable[..., Any], schema: str, *names: str, **fixed: Any) -> Callable[..., Any]:
    """A function of a few arguments that calls an op positionally, which is a fifth faster than by keywords.

    Args:
        op: an op. Where torch's object for it only hands a call on to `_op`, that one is called: half a microsecond.
        schema: the schema of the op.
        names: the arguments that the function takes, in the order that it takes them.
        fixed: arguments that always have the same value. All others have the schema's default.
    """
    everything = argument_names(schema)
    given = {**defaults(schema), **fixed}
    unknown = {*names, *fixed} - {*everything}
    missing = [name for name in everything if name not in names and name not in given]
    if unknown or missing:
        raise ValueError(f"caller: unknown arguments {sorted(unknown)}, arguments without a value {missing}")
    values = ", ".join(name if name in names else repr(given[name]) for name in everything)
    call: Callable[..., Any] = eval(f"lambda {', '.join(names)}: op({values})", {"op": getattr(op, "_op", op)})
    return call


# The fields of ForwardArgs and BackwardArgs that are called otherwise in an op.
_FIELD_OF = {
    "q_v": "qv",
    "is_causal": "causal",
    "window_size_left": "window_left",
    "window_size_right": "window_right",
    "is_rotary_interleaved": "rotary_interleaved",
    "k_cache": "k",
    "v_cache": "v",
}


def _fields(schema: str) -> tuple[str, ...]:
    return tuple(_FIELD_OF.get(name, name) for name in argument_names(schema))


def _tensors(schema: str) -> tuple[str, ...]:
    declared = zip(_fields(schema), _declarations(schema), strict=True)
    return tuple(name for name, declaration in declared if declaration.startswith("Tensor"))


FWD_FIELDS = _fields(PUBLIC["fwd"])
BWD_FIELDS = _fields(PUBLIC["bwd"])
CUSTOM_BACKWARD_FIELDS = tuple(name.replace("sequed", "seqused") for name in _fields(CUSTOM["_flash_attn_backward"]))
NATIVE_FWD_FIELDS = _fields(NATIVE["fwd"])
NATIVE_BWD_FIELDS = _fields(NATIVE["bwd"])
FORWARD_FIELDS = _fields(OWN["forward"])
APPEND_FIELDS = _fields(OWN["append"])
BACKWARD_FIELDS = _fields(OWN["backward"])
METADATA_NAMES = argument_names(PUBLIC["get_scheduler_metadata"])

# The tensors of a call, as fields. Scheduler metadata is none: nothing depends on what it looks like.
FORWARD_TENSORS = tuple(name for name in _tensors(NATIVE["fwd"]) if name != "scheduler_metadata")
BACKWARD_TENSORS = (*_tensors(OWN["backward"]), "qv")
