"""Both gates asked about the same calls: python -m tests.fakes.gate_calls LIBRARY FACTS DEVICE, a document on stdout.

LIBRARY is a family's host code over kernels that say `reached` (tests/prove/test_gates.py); FACTS is its build facts in
JSON, DEVICE the properties of the device that the stand-in runtime poses as. A process of its own, as ops stay loaded.
"""

from __future__ import annotations

import ctypes
import functools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flash_attn3_sm121 import fallback
from flash_attn3_sm121.call import facts as call_facts
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.call.facts import CallFacts, DeviceFacts
from flash_attn3_sm121.call.validation import check_backward, check_forward
from flash_attn3_sm121.dispatch import native_backend
from flash_attn3_sm121.dispatch.decide import NativeState, appends, native_refusal
from flash_attn3_sm121.errors import CallError
from flash_attn3_sm121.native import library as native
from flash_attn3_sm121.native.buildfacts import BuildFacts

BATCH, ROWS, KEYS, PAGE, HEADS, GROUPS = 2, 8, 32, 16, 4, 2
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "e4m3": torch.float8_e4m3fn, "fp32": torch.float32}
KERNEL_TYPES = {torch.bfloat16: "bfloat16_t", torch.float16: "half_t", torch.float8_e4m3fn: "float_e4m3_t"}
# Types of q, and of k and v.
PAIRS = (*((name, name) for name in TYPES), ("bf16", "fp16"), ("bf16", "e4m3"), ("e4m3", "bf16"), ("fp32", "bf16"))
THOROUGH = (("bf16", "bf16"), ("e4m3", "e4m3"))
EQUAL = (16, 24, 64, 96, 136, 192, 256)
DIMS = (
    *((dim, dim) for dim in EQUAL),
    *((64, 32), (64, 96), (64, 256), (64, 264), (32, 512), (72, 512), (128, 64), (128, 256)),
    *((192, 128), (192, 96), (136, 104), (192, 136), (256, 512)),
)


@functools.cache
def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _lengths(words: frozenset[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if "packed q" in words:
        given |= {"cu_seqlens_q": ints(0, ROWS, BATCH * ROWS), "max_seqlen_q": ROWS}
    if "packed k" in words:
        given |= {"cu_seqlens_k": ints(0, KEYS, BATCH * KEYS), "max_seqlen_k": KEYS}
    given |= {"seqused_q": ints(ROWS, ROWS)} if "seqused_q" in words else {}
    given |= {"seqused_k": ints(9, 9)} if words & {"seqused_k", "append"} else {}
    return given


def _mask(words: frozenset[str]) -> dict[str, Any]:
    given: dict[str, Any] = {"causal": "causal" in words, "softcap": 20.0 if "softcap" in words else 0.0}
    given |= {"attention_chunk": 4} if "chunk" in words else {}
    return given | ({"window_left": 3, "window_right": 2} if "local" in words else {})


def _tensors(words: frozenset[str], types: tuple[str, str], dims: tuple[int, int]) -> dict[str, Tensor]:
    own, theirs = (TYPES[name] for name in types)
    rows = (BATCH * ROWS,) if "packed q" in words else (BATCH, ROWS)
    keys = (BATCH * KEYS,) if "packed k" in words else (BATCH, KEYS)
    keys = (BATCH * KEYS // PAGE, PAGE) if "paged" in words else keys
    k, v = (zeros(theirs, *keys, GROUPS, dim) for dim in dims)
    return {"q": zeros(own, *rows, HEADS, dims[0]), "k": k, "v": v}


FORWARD_WORDS = (
    *("causal", "local", "chunk", "softcap", "packed q", "packed k", "seqused_q", "seqused_k", "leftpad", "paged"),
    *("append", "rotary", "batch_idx", "split", "auto split", "packgqa", "qv", "sinks"),
)


def forward(words: frozenset[str], types: tuple[str, str], dims: tuple[int, int]) -> ForwardArgs:
    given: dict[str, Any] = {**_tensors(words, types, dims), **_lengths(words), **_mask(words)}
    own, theirs = (TYPES[name] for name in types)
    dim, dim_v = dims
    if "paged" in words:
        given["page_table"] = torch.arange(BATCH * KEYS // PAGE, dtype=torch.int32).view(BATCH, -1)
    if "append" in words:
        given |= {name: zeros(theirs, BATCH, 1, GROUPS, d) for name, d in (("k_new", dim), ("v_new", dim_v))}
    if "rotary" in words:
        given |= {name: zeros(own, 2 * KEYS, 8) for name in ("rotary_cos", "rotary_sin")}
    given |= {"leftpad_k": ints(0, 0)} if "leftpad" in words else {}
    given |= {"kv_batch_idx": ints(1, 0)} if "batch_idx" in words else {}
    given |= {"pack_gqa": True} if "packgqa" in words else {}
    given |= {"qv": zeros(own, *given["q"].shape[:-1], dim_v)} if "qv" in words else {}
    given |= {"s_aux": zeros(torch.float32, HEADS)} if "sinks" in words else {}
    splits = 3 if "split" in words else 0 if "auto split" in words else 1
    return ForwardArgs(**given, softmax_scale=0.125, num_splits=splits)


BACKWARD_WORDS = (
    *("causal", "local", "chunk", "softcap", "packed q", "packed k", "seqused_q", "seqused_k"),
    *("sinks", "dlse", "deterministic"),
)


def backward(words: frozenset[str], types: tuple[str, str], dims: tuple[int, int]) -> BackwardArgs:
    given: dict[str, Any] = {**_tensors(words, types, dims), **_lengths(words), **_mask(words)}
    out = zeros(TYPES[types[0]], *given["q"].shape[:-1], dims[1])
    lse = (HEADS, BATCH * ROWS) if "packed q" in words else (BATCH, HEADS, ROWS)
    given |= {"out": out, "dout": out, "softmax_lse": zeros(torch.float32, *lse)}
    given |= {"dlse": zeros(torch.float32, *lse)} if "dlse" in words else {}
    given |= {"s_aux": zeros(torch.float32, HEADS)} if "sinks" in words else {}
    return BackwardArgs(**given, softmax_scale=0.125, deterministic="deterministic" in words)


def questions() -> Iterator[tuple[str, ForwardArgs | BackwardArgs]]:
    """Every valid call of all types and head dims with at most two of the words; one will do for most types."""
    for words_of, make, check in (
        (FORWARD_WORDS, forward, check_forward),
        (BACKWARD_WORDS, backward, check_backward),
    ):
        chosen = [frozenset(some) for count in range(3) for some in combinations(words_of, count)]
        for types, dims, words in product(PAIRS, DIMS, chosen):
            if types not in THOROUGH and len(words) > 1:
                continue
            args = make(words, types, dims)  # type: ignore[operator]
            try:
                check(args)  # type: ignore[operator]
            except CallError:
                continue
            names = ", ".join(sorted(words)) or "plain"
            yield f"{make.__name__} {'/'.join(types)} d {dims[0]} dv {dims[1]}: {names}", args


def library_refusal(ops: native.LoadedOps, facts: BuildFacts, args: ForwardArgs | BackwardArgs) -> str | None:
    """What the library says to a call as our engine would hand it on; None where it calls a kernel."""
    try:
        if isinstance(args, ForwardArgs):
            if args.k_new is not None and not appends(facts, call_facts.facts_of(args)):
                args = fallback.appended(args)
            multiplied = args.q.dtype == torch.float8_e4m3fn and "fp8" in facts.features
            if args.k.dtype == torch.float8_e4m3fn and facts.family != "sm90" and not multiplied:
                args = native_backend.widened(args)
            alone = args.num_splits < 1 and "split" not in facts.features
            native.run_forward(ops, replace(args, num_splits=1) if alone else args)
        else:
            native.run_backward(ops, args, *(torch.empty_like(x) for x in (args.q, args.k, args.v)))
    except RuntimeError as error:
        text = str(error).splitlines()[0]
        found = re.search(r"reached (\w+) (\d+)(?: (\d+))?", text)
        return unfit(facts, args, found[1], int(found[2]), int(found[3] or found[2])) if found else text
    raise AssertionError("the library neither called a kernel nor refused")


def unfit(facts: BuildFacts, args: ForwardArgs | BackwardArgs, dtype: str, dim: int, dim_v: int) -> str | None:
    """What is wrong with a kernel for this call; None where it has the type and room for the heads."""
    own = KERNEL_TYPES.get(args.q.dtype)
    wanted = own if args.k.dtype == args.q.dtype else f"kv8_{own}"
    if facts.family != "sm90" and (getattr(args, "qv", None) is not None or args.v.shape[-1] > 256):
        wanted = f"qv_{own}"
    right = dtype == wanted and args.q.shape[-1] <= dim and args.v.shape[-1] <= dim_v
    return None if right else f"calls a kernel for {dtype}, d <= {dim} and dv <= {dim_v}"


def stricter(facts: BuildFacts, call: CallFacts) -> str | None:
    """Why our gate refuses what a library would take. Whatever is not listed here must be as the library has it."""
    backward = call.direction == "backward"
    if backward and "chunk" in call.features:
        return "the op has no attention_chunk, and would ignore it"
    if backward and "sinks" in call.features and "sinks" not in facts.features:
        return "the op needs no sinks, which are in the LSE: whose forward takes none has no such LSE"
    if backward and facts.family == "sm90" and call.features & {"seqused_q", "seqused_k"}:
        return "Hopper's backward is wrong with seqused_*"
    if facts.family == "sm90" and "rotary" in call.features and call.dtype == "e4m3":
        return "fp8 keys are turned wrongly"
    if call.head_dim != call.head_dim_v and "diff_headdim" not in facts.features:
        return "a kernel may have room for another V, and none was built for it"
    return None


def main() -> None:
    path, text, properties = sys.argv[1:]
    facts, device = BuildFacts.from_json(text, origin="FACTS"), json.loads(properties)
    ops = native.load_ops(Path(path), facts)
    key = torch._C.DispatchKey.CUDA
    ops = native.LoadedOps(
        fwd=functools.partial(ops.fwd._op_dk, key),  # type: ignore[attr-defined]
        bwd=None if ops.bwd is None else functools.partial(ops.bwd._op_dk, key),  # type: ignore[attr-defined]
        fwd_combine=None,
        get_scheduler_metadata=ops.get_scheduler_metadata,
    )
    ctypes.CDLL(path).stub_device(*(device[name] for name in ("major", "minor", "sms", "l2", "smem")))
    where = DeviceFacts(type="cuda", capability=(device["major"], device["minor"]), smem_limit=device["smem"])
    state = NativeState(builds=(facts,))
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    wrong = []
    for name, args in questions():
        call = call_facts.facts_of(args)
        ours, theirs = native_refusal(where, state, call), library_refusal(ops, facts, args)
        mine = ours if isinstance(ours, str) else None
        counts["native" if mine is None else "refused"] += 1
        if (mine is None) == (theirs is None):
            continue
        why = None if mine is None else stricter(facts, call)
        if why is None:
            wrong.append(f"{name}\n  our gate: {mine or 'native'}\n  library: {theirs or 'a kernel is called'}")
        else:
            reasons[why] += 1
    json.dump({"counts": counts, "stricter": reasons, "wrong": wrong}, sys.stdout)


if __name__ == "__main__":
    main()
