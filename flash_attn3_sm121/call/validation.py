"""The checks of a call, before anything is decided or written. Only shapes, dtypes and devices are looked at.

Messages keep upstream's recognisable words, which are searched for, and add what was found. Everything here works
on fake tensors too, so a compiled program gets the same errors while it is being traced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.call.types import CALLED, check_types, fail, name_of_lengths

FP8 = torch.float8_e4m3fn
FORWARD_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64, FP8})
MAX_HEAD_DIM = 256
MAX_HEAD_DIM_V = 512
MAX_SPLITS = 256


def out_dtype(q: Tensor) -> torch.dtype:
    """fp8 computes into bf16; everything else into q's own dtype."""
    return torch.bfloat16 if q.dtype == FP8 else q.dtype


def _device(name: str, tensor: Tensor, q: Tensor) -> None:
    if tensor.device != q.device:
        where = "CUDA" if q.device.type == "cuda" else str(q.device)
        fail(f"{name} must be on {where} like q ({q.device}), found {tensor.device}")


def _shape(name: str, tensor: Tensor, expected: tuple[object, ...], words: str) -> None:
    if tuple(tensor.shape) != expected:
        wanted = ", ".join(str(size) for size in expected)
        fail(f"{name} must have shape ({wanted}) = ({words}), found {tuple(tensor.shape)}")


def _index(name: str, tensor: Tensor | None, q: Tensor, expected: tuple[object, ...], words: str) -> None:
    """An int32 tensor on q's device."""
    if tensor is None:
        return
    if tensor.dtype != torch.int32:
        fail(f"{name} must have dtype torch.int32, found {tensor.dtype}", hint=f"pass {name}.to(torch.int32)")
    _device(name, tensor, q)
    _shape(name, tensor, expected, words)


def _dtypes(args: ForwardArgs) -> None:
    q, k, v = args.q, args.k, args.v
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dtype not in FORWARD_DTYPES:
            fail(
                f"FlashAttention only supports fp16, bf16, and fp8_e4m3 data type (and fp32 in the fallback): "
                f"{name} is {tensor.dtype}"
            )
    if k.dtype != v.dtype:
        fail(f"query and value must have the same dtype: k is {k.dtype}, v is {v.dtype}")
    if k.dtype != q.dtype:
        # A cache of another floating type is served (a fp32 model on a bf16 cache), and fp8 under 16-bit queries.
        cached = args.k_new is not None or args.seqused_k is not None or args.page_table is not None
        mixed = k.dtype == FP8 and q.dtype in (torch.float16, torch.bfloat16)
        if not mixed and (FP8 in (q.dtype, k.dtype) or not cached or args.cu_seqlens_k is not None):
            hint = "fp8 keys and values take queries in fp8, bf16 or fp16; other keys take no fp8 queries"
            fail(
                f"query and key must have the same dtype: q is {q.dtype}, k is {k.dtype}",
                hint=hint if FP8 in (q.dtype, k.dtype) else None,
            )
    for field, new in (("k_new", args.k_new), ("v_new", args.v_new)):
        if new is not None and new.dtype not in (q.dtype, k.dtype):
            allowed = f"query ({q.dtype}) or the cache ({k.dtype})"
            fail(f"{CALLED[field]} must have the same dtype as {allowed}, found {new.dtype}")
    if args.qv is not None and args.qv.dtype != q.dtype:
        fail(f"q_v must have the same dtype as query ({q.dtype}), found {args.qv.dtype}")


def _devices(args: ForwardArgs) -> None:
    q = args.q
    for name in ("k", "v", "k_new", "v_new", "qv", "out", "rotary_cos", "rotary_sin", "s_aux"):
        tensor = getattr(args, name)
        if tensor is not None:
            _device(CALLED.get(name, name), tensor, q)


def _heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    heads, heads_kv, dim, dim_v = q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1]
    if heads_kv < 1 or heads % heads_kv != 0:
        fail(f"Number of heads in key/value must divide number of heads in query: {heads_kv} and {heads}")
    alignment = 16 if k.dtype == FP8 else 8
    for name, size in (("head_size", dim), ("head_size_v", dim_v)):
        if size == 0:
            fail(f"{name} should be a multiple of {alignment}, found 0: the last dimension of the tensor is empty")
        if size % alignment != 0:
            fail(f"{name} should be a multiple of {alignment}, found {size}", hint="pad the last dimension with zeros")
    if dim > MAX_HEAD_DIM:
        fail(f"FlashAttention forward only supports head dimension at most {MAX_HEAD_DIM}, found {dim}")
    if dim_v > MAX_HEAD_DIM_V:
        fail(f"FlashAttention forward only supports head_size_v at most {MAX_HEAD_DIM_V}, found {dim_v}")


def _queries(args: ForwardArgs | BackwardArgs) -> int:
    """Check q and the lengths that go with it; the batch size."""
    q, cu = args.q, args.cu_seqlens_q
    if cu is None:
        if q.dim() != 4:
            fail(
                f"q must have shape (batch_size, seqlen_q, num_heads, head_size), found {tuple(q.shape)}",
                hint="packed (total_q, num_heads, head_size) tensors need cu_seqlens_q",
            )
        batch = q.shape[0]
    else:
        if q.dim() != 3:
            fail(f"q must have shape (total_q, num_heads, head_size) with cu_seqlens_q, found {tuple(q.shape)}")
        if args.max_seqlen_q is None:
            fail("max_seqlen_q must be provided if cu_seqlens_q is provided")
        if cu.dim() != 1 or cu.shape[0] < 1:
            fail(f"cu_seqlens_q must have shape (batch_size + 1), found {tuple(cu.shape)}")
        batch = cu.shape[0] - 1
        _index("cu_seqlens_q", cu, q, (batch + 1,), "batch_size + 1")
    _index("seqused_q", args.seqused_q, q, (batch,), "batch_size")
    return batch


def _keys_packed(args: ForwardArgs | BackwardArgs, batch: int) -> None:
    q, k, v, cu = args.q, args.k, args.v, args.cu_seqlens_k
    if args.max_seqlen_k is None:
        fail("max_seqlen_k must be provided if cu_seqlens_k is provided")
    if k.dim() != 3:
        fail(f"k must have shape (total_k, num_heads_k, head_size) with cu_seqlens_k, found {tuple(k.shape)}")
    _index("cu_seqlens_k", cu, q, (batch + 1,), "batch_size + 1")
    _shape("k", k, (k.shape[0], k.shape[1], q.shape[-1]), "total_k, num_heads_k, head_size")
    _shape("v", v, (k.shape[0], k.shape[1], v.shape[-1]), "total_k, num_heads_k, head_size_v")


def _keys_dense(args: ForwardArgs | BackwardArgs, batch: int, *, any_row: bool) -> None:
    q, k, v = args.q, args.k, args.v
    if k.dim() != 4:
        fail(
            f"k must have shape (batch_size, seqlen_k, num_heads_k, head_size), found {tuple(k.shape)}",
            hint="packed (total_k, num_heads_k, head_size) tensors need cu_seqlens_k",
        )
    if not any_row and k.shape[0] != batch:
        fail(f"batch_size must be equal to batch_size_k: {batch} and {k.shape[0]}")
    words = "batch_size_k, seqlen_k, num_heads_k"
    _shape("k", k, (*k.shape[:3], q.shape[-1]), f"{words}, head_size")
    _shape("v", v, (*k.shape[:3], v.shape[-1]), f"{words}, head_size_v")


def _keys_paged(args: ForwardArgs, batch: int) -> None:
    q, k, v, table = args.q, args.k, args.v, args.page_table
    assert table is not None
    if table.dtype != torch.int32:
        fail(f"page_table must have dtype torch.int32, found {table.dtype}")
    if table.dim() != 2:
        fail(f"page_table must have shape (batch_size_k, max_num_pages_per_seq), found {tuple(table.shape)}")
    _device("page_table", table, q)
    if table.stride(-1) != 1 and table.shape[1] > 1:
        fail("page_table must have contiguous last dimension")
    if args.kv_batch_idx is None and table.shape[0] != batch:
        fail(f"batch_size must be equal to batch_size_k: {batch} and {table.shape[0]} (rows of page_table)")
    if k.dim() != 4:
        fail(f"k must have shape (num_pages, page_size, num_heads_k, head_size), found {tuple(k.shape)}")
    if k.shape[1] == 0:
        fail(f"a page must hold one position at least, found pages of size 0: k has shape {tuple(k.shape)}")
    words = "num_pages, page_size, num_heads_k"
    _shape("k", k, (*k.shape[:3], q.shape[-1]), f"{words}, head_size")
    _shape("v", v, (*k.shape[:3], v.shape[-1]), f"{words}, head_size_v")


def _new_keys(args: ForwardArgs, batch: int) -> None:
    q, k, v, k_new, v_new = args.q, args.k, args.v, args.k_new, args.v_new
    if k_new is None:
        if v_new is not None:
            fail("If v_new is supplied, k_new must also be passed in")
        return
    if v_new is None:
        fail("If k_new is supplied, v_new must also be passed in")
    if args.seqused_k is None:
        fail(
            "If k_new is supplied, seqlens_k must also be passed in: the new keys k need cache_seqlens",
            hint="pass cache_seqlens, how many positions of each row are filled",
        )
    if args.cu_seqlens_k is not None:
        fail("k_new cannot be appended to packed keys (cu_seqlens_k)")
    heads_kv, dim, dim_v = k.shape[-2], q.shape[-1], v.shape[-1]
    cu = args.cu_seqlens_k_new
    for field, new, size in (("k_new", k_new, dim), ("v_new", v_new, dim_v)):
        name = CALLED[field]
        if cu is None:
            if new.dim() != 4:
                fail(f"{name} must have shape (batch_size, seqlen_new, num_heads_k, {size}), found {tuple(new.shape)}")
            _shape(name, new, (batch, k_new.shape[1], heads_kv, size), "batch_size, seqlen_new, num_heads_k, head_size")
        else:
            if new.dim() != 3:
                fail(f"{name} must have shape (total_new, num_heads_k, {size}), found {tuple(new.shape)}")
            _shape(name, new, (k_new.shape[0], heads_kv, size), "total_new, num_heads_k, head_size")
    _index("cu_seqlens_k_new", cu, q, (batch + 1,), "batch_size + 1")
    for name, cache in (("k_cache", k), ("v_cache", v)):
        if cache.stride(-1) != 1:
            fail(f"{name} must have contiguous last dimension")
    if cu is None and args.page_table is None and k_new.shape[1] > k.shape[1]:
        sizes = f"{k_new.shape[1]} and {k.shape[1]}"
        fail(f"If k_new is supplied, it must have seqlen <= the seqlen of the KV cache: {sizes}")


def _rotary(args: ForwardArgs, batch: int) -> None:
    q, cos, sin = args.q, args.rotary_cos, args.rotary_sin
    if cos is None:
        if sin is not None:
            fail("If rotary sin is provided, rotary cos must also be provided")
        return
    if args.k_new is None:
        fail("If rotary cos/sin are provided, new key / value to be appended to KV cache must also be provided")
    if sin is None:
        fail("If rotary cos is provided, rotary sin must also be provided")
    if cos.dim() != 2:
        fail(f"rotary_cos must have shape (seqlen_ro, rotary_dim / 2), found {tuple(cos.shape)}")
    dim = cos.shape[1] * 2
    if dim > q.shape[-1]:
        fail(f"rotary_dim must be <= headdim: {dim} and {q.shape[-1]}")
    if dim % 16 != 0:
        fail(f"Only rotary dimensions divisible by 16 are currently supported, found {dim}")
    _shape("rotary_sin", sin, (cos.shape[0], cos.shape[1]), "seqlen_ro, rotary_dim / 2")
    for name, table in (("rotary_cos", cos), ("rotary_sin", sin)):
        if table.dtype != q.dtype:
            fail(f"{name} must have the same dtype as query ({q.dtype}), found {table.dtype}")
    if args.page_table is not None:
        capacity = args.page_table.shape[1] * args.k.shape[1]
        if cos.shape[0] < capacity:
            fail(f"cos/sin seqlen must be at least the seqlen of KV cache: {cos.shape[0]} and {capacity}")
    _index("rotary_seqlens", args.seqlens_rotary, q, (batch,), "batch_size")


def _extras(args: ForwardArgs, batch: int) -> None:
    q, v = args.q, args.v
    if args.num_splits > MAX_SPLITS:
        fail(f"num_splits > {MAX_SPLITS} not supported, found {args.num_splits}")
    if args.attention_chunk < 0:
        fail(f"attention_chunk must be 0 (off) or positive, found {args.attention_chunk}")
    if args.qv is not None:
        _shape("qv", args.qv, (*q.shape[:-1], v.shape[-1]), "the shape of q with head_size_v")
    if args.s_aux is not None:
        _shape("s_aux", args.s_aux, (q.shape[-2],), "num_heads")
        if not args.s_aux.dtype.is_floating_point:
            fail(f"s_aux must be floating point, found {args.s_aux.dtype}")
    if args.out is not None:
        _shape("out", args.out, (*q.shape[:-1], v.shape[-1]), "the shape of q with head_size_v")
        if args.out.dtype != out_dtype(q):
            fail(
                "For FP16/BF16 input, output must have the same dtype as inputs. For FP8 input, output must have dtype "
                f"BF16: expected {out_dtype(q)}, found {args.out.dtype}"
            )
    if args.k.dtype == FP8:
        _descales(args, batch)


def _descales(args: ForwardArgs, batch: int) -> None:
    for name in ("q_descale", "k_descale", "v_descale"):
        scale = getattr(args, name)
        if scale is not None:
            _device(name, scale, args.q)
            _shape(name, scale, (batch, args.k.shape[-2]), "batch_size, num_heads_k")
            if scale.dtype != torch.float32:
                fail(f"{name} must have dtype torch.float32, found {scale.dtype}")
    missing = [name for name in ("k_descale", "v_descale") if getattr(args, name) is None]
    if len(missing) == 1:
        fail(
            f"k_descale and v_descale must be given together, {missing[0]} is missing and would count as 1",
            hint=f"pass {missing[0]}=torch.ones({batch}, {args.k.shape[-2]}) in fp32 where that is meant",
        )


def check_forward(args: ForwardArgs) -> None:
    """Raise unless the arguments of a call fit together; nothing is read from any device.

    Raises:
        TypeError: an argument is no tensor.
        CallError: everything else.
    """
    check_types(args)
    _dtypes(args)
    _devices(args)
    batch = _queries(args)
    if args.cu_seqlens_k is not None:
        if args.page_table is not None or args.kv_batch_idx is not None:
            fail("If cu_seqlens_k is passed in, then page table is not supported (nor is cache_batch_idx)")
        _keys_packed(args, batch)
    elif args.page_table is not None:
        _keys_paged(args, batch)
    else:
        _keys_dense(args, batch, any_row=args.kv_batch_idx is not None)
    _heads(args.q, args.k, args.v)
    _index(name_of_lengths(args), args.seqused_k, args.q, (batch,), "batch_size")
    for name in ("leftpad_k", "kv_batch_idx"):
        _index(CALLED[name], getattr(args, name), args.q, (batch,), "batch_size")
    _new_keys(args, batch)
    _rotary(args, batch)
    _extras(args, batch)


def check_backward(args: BackwardArgs) -> None:
    """The same for a backward call."""
    check_types(args)
    q, k, v = args.q, args.k, args.v
    for name, tensor in (("q", q), ("k", k), ("v", v), ("out", args.out), ("dout", args.dout)):
        if tensor.dtype == FP8 or tensor.dtype not in FORWARD_DTYPES:
            fail(
                f"FlashAttention only support fp16 and bf16 data type in backward (and fp32): {name} is {tensor.dtype}"
            )
        if tensor.dtype != q.dtype:
            fail(f"query and {name} must have the same dtype: {q.dtype} and {tensor.dtype}")
        _device(name, tensor, q)
    if args.qv is not None:
        fail("qv is forward only: upstream's backward ignores it and would return wrong gradients")
    batch = _queries(args)
    if args.cu_seqlens_k is not None:
        _keys_packed(args, batch)
    else:
        _keys_dense(args, batch, any_row=False)
    _heads(q, k, v)
    for name, tensor in (("out", args.out), ("dout", args.dout)):
        _shape(name, tensor, (*q.shape[:-1], v.shape[-1]), "the shape of q with head_size_v")
    _index("seqused_k", args.seqused_k, q, (batch,), "batch_size")
    packed = args.cu_seqlens_q is not None
    lse = (q.shape[1], q.shape[0]) if packed else (q.shape[0], q.shape[2], q.shape[1])
    if not packed or tuple(args.softmax_lse.shape) != (1, *lse):  # the latter is upstream's older layout
        _shape("softmax_lse", args.softmax_lse, lse, "one per row of scores")
    if args.softmax_lse.dtype != torch.float32:
        fail(f"softmax_lse must have dtype torch.float32, found {args.softmax_lse.dtype}")


def check_gradients(args: BackwardArgs, into: Sequence[Tensor | None]) -> None:
    """Raise unless the tensors (dq, dk, dv) that gradients are to be written into are like q, k and v."""
    for name, tensor, like in zip(("dq", "dk", "dv"), into, (args.q, args.k, args.v), strict=True):
        if tensor is None or not isinstance(like, Tensor):
            continue  # the latter is told with the other arguments
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, found {type(tensor).__name__}")
        _shape(name, tensor, tuple(like.shape), f"the shape of {name[1:]}")
        if tensor.dtype != like.dtype:
            fail(f"{name} must have the same dtype as {name[1:]} ({like.dtype}), found {tensor.dtype}")


def check_combine(out_partial: Tensor, lse_partial: Tensor, out: Tensor | None) -> None:
    """Raise CallError unless partial results fit together."""
    if out_partial.dtype != torch.float32 or lse_partial.dtype != torch.float32:
        fail(
            "FlashAttention combine function only support fp32 data type for the partial results: "
            f"out_partial is {out_partial.dtype}, lse_partial is {lse_partial.dtype}"
        )
    if out_partial.dim() != 5:
        fail(f"out_partial must have shape (num_splits, batch, seqlen, heads, dim), found {tuple(out_partial.shape)}")
    if out_partial.shape[0] > MAX_SPLITS:
        fail(f"FlashAttention combine only supports num_splits at most {MAX_SPLITS}, found {out_partial.shape[0]}")
    _device("lse_partial", lse_partial, out_partial)
    _shape("lse_partial", lse_partial, tuple(out_partial.shape[:-1]), "num_splits, batch, seqlen, heads")
    if out is not None:
        if not isinstance(out, Tensor):
            raise TypeError(f"out must be a torch.Tensor, found {type(out).__name__}")
        _device("out", out, out_partial)
        _shape("out", out, tuple(out_partial.shape[1:]), "batch, seqlen, heads, dim")


def check_metadata(call: Mapping[str, Any]) -> None:
    """Raise CallError if a tensor of get_scheduler_metadata's arguments is too short: a kernel would read behind it."""
    batch = int(call["batch_size"])
    for field, needed, words in (
        ("seqused_k", batch, "batch_size"),
        ("leftpad_k", batch, "batch_size"),
        ("cu_seqlens_q", batch + 1, "batch_size + 1"),
        ("cu_seqlens_k_new", batch + 1, "batch_size + 1"),
    ):
        tensor, name = call[field], {**CALLED, "seqused_k": "cache_seqlens"}.get(field, field)
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, found {type(tensor).__name__}")
        if tensor.dim() != 1 or tensor.shape[0] < needed:
            fail(f"{name} must have shape ({needed},) = ({words}), found {tuple(tensor.shape)}")
