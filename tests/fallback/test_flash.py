"""Calls through torch's FlashAttention on CUDA: every call's numbers, with the operators in plain torch."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from flash_attn3_sm121 import fallback
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.fallback import flash, static, trial
from flash_attn3_sm121.fallback.problem import facts
from tests.fallback import generate, reference
from tests.fallback.compare import GRADIENT_TOLERANCE, LSE_TOLERANCE, TOLERANCE, assert_close, backward_args
from tests.fallback.flash_kernel import PlainKernel
from tests.fallback.operators import no_reads


def check(args: ForwardArgs, monkeypatch: pytest.MonkeyPatch) -> PlainKernel:
    kernel, want, mine = PlainKernel(), reference.expected(args), copy.deepcopy(args)
    with no_reads(monkeypatch):
        out, lse = static.forward(mine, kernel=kernel)
    assert kernel.shapes and out.is_contiguous() and lse.is_contiguous() and lse.dtype == torch.float32
    rounded = any(x.dtype in (torch.float8_e4m3fn, torch.float8_e5m2) for x in (args.q, args.k))
    assert_close(out, want.out, 2 * TOLERANCE[out.dtype], "out")
    assert_close(lse, want.lse, 3e-2 if rounded else LSE_TOLERANCE[out.dtype], "lse")
    for name, found, expected in (("k", mine.k, want.k), ("v", mine.v, want.v)):
        pair = (tensor.double().nan_to_num(7.0) for tensor in (found, expected))
        assert_close(*pair, 1e-2, f"{name} cache")
    return kernel


def spoil(args: ForwardArgs) -> None:
    """NaN everywhere in a cache where no sequence has a token yet."""
    assert args.seqused_k is not None
    held = torch.zeros(args.k.shape[:2], dtype=torch.bool)
    for b, used in enumerate(args.seqused_k.tolist()):
        row = int(args.kv_batch_idx[b]) if args.kv_batch_idx is not None else b
        for position in range(int(args.leftpad_k[b]) if args.leftpad_k is not None else 0, used):
            slot, size = position, args.k.shape[1]
            page = int(args.page_table[row, slot // size]) if args.page_table is not None else row
            held[page, slot % size] = True
    args.k[~held], args.v[~held] = torch.nan, torch.nan


@pytest.mark.parametrize("sizes", ["usual", "tiny"])
@pytest.mark.parametrize(("make", "start"), [("dense", 320_000), ("cache", 420_000), ("cache", 421_000)])
def test_random_calls(make: str, start: int, sizes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if sizes == "tiny":
        for name in ("LEAST_PART", "SPLIT_KEYS", "COPY_BYTES"):
            monkeypatch.setattr(flash, name, 1)
        monkeypatch.setattr(flash, "MOST_SEQUENCES", 5)
    served = 0
    for seed in range(start, start + 160):
        args = getattr(generate, make)(seed)
        if not flash.serves(args, facts(args)):
            continue
        served += 1
        if make == "cache" and args.seqused_k is not None:
            spoil(args)
        try:
            check(args, monkeypatch)
        except Exception as error:
            raise AssertionError(f"generate.{make}({seed}): {error}") from error
    assert served >= 15


def test_random_gradients() -> None:
    served = 0
    for seed in range(820_000, 820_150):
        args = generate.dense(seed, limit=12)
        args.qv, args.seqused_q, args.seqused_k, args.softcap, args.attention_chunk = None, None, None, 0.0, 0
        out, lse = fallback.forward(args)
        dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(out.dtype)
        given = backward_args(args, out, lse, dout)
        if not flash.serves(given, facts(given)):
            continue
        served += 1
        want, found = fallback.backward(given), flash.backward(PlainKernel(), given, facts(given))
        for name, a, b in zip(("dq", "dk", "dv", "ds_aux"), found, want, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                assert_close(a, b.double(), 2 * GRADIENT_TOLERANCE[args.q.dtype], f"{name} of dense({seed})")
    assert served >= 15


def decode(
    batch: int, rows: int, keys: int, *, heads: int = 8, kv_heads: int = 2, dim: int = 16, **fields: Any
) -> ForwardArgs:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (
        torch.randn(shape, generator=generator).bfloat16()
        for shape in ((batch, rows, heads, dim), (batch, keys, kv_heads, dim), (batch, keys, kv_heads, dim))
    )
    fields = {"causal": True, "window_right": 0} | fields
    return ForwardArgs(q=q, k=k, v=v, softmax_scale=0.25, **fields)


def test_one_row_has_no_limit_on_its_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one, the operators would not make rows of a group's heads."""
    for fields in ({}, {"seqused_k": ints(20, 7)}):
        assert check(decode(2, 1, 32, **fields), monkeypatch).windows == [(-1, -1)]
    assert check(decode(2, 3, 32), monkeypatch).windows == [(-1, 0)]


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("window", [-1, 700], ids=["full", "window"])
@pytest.mark.parametrize("kv_heads", [8, 2], ids=["equal", "grouped"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_long_cache(rows: int, kv_heads: int, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    args = decode(3, rows, 3000, kv_heads=kv_heads, window_left=window, seqused_k=ints(37, 3000, 0))
    for row, used in enumerate((37, 3000, 0)):
        args.k[row, used:], args.v[row, used:] = torch.nan, torch.inf
    kernel = check(args, monkeypatch)
    parts = -(-3000 // -(-3000 * 24 // flash.JOBS)) if rows == 1 and kv_heads == 8 else 1
    if window < 0:
        assert kernel.shapes == [(3 * parts * rows, 3 * parts, (rows, 3000 if parts == 1 else 282))]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("window", [-1, 100], ids=["full", "window"])
def test_pages(rows: int, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    args = decode(2, rows, 512, seqused_k=ints(300, 77), window_left=window, page_table=ints(*range(15, -1, -1)))
    args.k, args.v = (cache.reshape(16, 64, 2, 16) for cache in (args.k, args.v))
    assert args.page_table is not None
    args.page_table = args.page_table.view(2, 8)
    args.page_table[1, 2:] = -1  # not allocated
    kernel = check(args, monkeypatch)
    seen = 3 if window >= 0 else 8
    assert kernel.shapes == [(8 * seen, 2 * seen, (4, 64)) if rows == 1 else (6, 2, (3, 512 if window < 0 else 103))]


@pytest.mark.parametrize("kind", ["dense", "cache", "paged"])
def test_fp8(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = decode(2, 3, 32, seqused_k=None if kind == "dense" else ints(20, 7))
    for name in ("q", "k", "v"):
        setattr(args, name, getattr(args, name).to(torch.float8_e4m3fn))
        setattr(args, f"{name}_descale", torch.tensor([[0.5, 2.0], [1.5, 1.0]]))
    if kind == "paged":
        args.k, args.v = (cache.view(8, 8, 2, 16) for cache in (args.k, args.v))
        args.page_table = ints(3, 1, 7, 0, 2, 6, 5, 4).view(2, 4)
    check(args, monkeypatch)


def test_a_cache_of_one_key_at_every_position(monkeypatch: pytest.MonkeyPatch) -> None:
    args = decode(2, 3, 32, seqused_k=ints(20, 7))
    args.k, args.v = (cache[:, :1].expand(-1, 32, -1, -1) for cache in (args.k, args.v))
    check(args, monkeypatch)


def test_offsets_with_gaps_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    args = decode(1, 8, 12, max_seqlen_q=5, max_seqlen_k=9)
    args.q, args.k, args.v = (x.squeeze(0) for x in (args.q, args.k, args.v))
    args.cu_seqlens_q, args.cu_seqlens_k = ints(0, -1, 3, -1, 8)[::2], ints(0, -1, 9, -1, 12)[::2]
    check(args, monkeypatch)
    given = backward_args(args, *fallback.forward(args), args.q)
    for found, want in zip(
        flash.backward(PlainKernel(), given, facts(given))[:3], fallback.backward(given), strict=False
    ):
        assert found is not None and want is not None
        assert_close(found, want.double(), 0.1, "gradient")


def test_rows_of_no_sequence_have_no_part_in_the_gradient_of_sinks() -> None:
    args = decode(1, 5, 5, max_seqlen_q=3, max_seqlen_k=3, s_aux=torch.zeros(8))
    args.q, args.k, args.v = (x.squeeze(0) for x in (args.q, args.k, args.v))
    args.cu_seqlens_q = args.cu_seqlens_k = ints(0, 3)
    given = backward_args(args, *fallback.forward(args), args.q.clone())
    given.dout[3:] = torch.nan
    found, want = flash.backward(PlainKernel(), given, facts(given))[3], fallback.backward(given)[3]
    assert found is not None and want is not None
    assert_close(found, want.double(), 1e-2, "gradient")


def test_launches_do_not_depend_on_the_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (
        check(decode(3, 2, 32, seqused_k=ints(*lengths)), monkeypatch) for lengths in ((0, 1, 2), (31, 7, 30))
    )
    assert first.shapes == second.shapes


def test_what_it_does_not_serve() -> None:
    args = decode(2, 1, 32, seqused_k=ints(20, 7))
    assert flash.serves(args, facts(args))
    for more in ({"softcap": 2.0}, {"attention_chunk": 8}, {"seqused_q": ints(1, 1)}, {"qv": args.q}):
        other = dataclasses.replace(args, **more)
        assert not flash.serves(other, facts(other))
    single = dataclasses.replace(args, q=args.q.float(), k=args.k.float(), v=args.v.float())
    assert not flash.serves(single, facts(single))
    assert trial.pick(args) is None, "on a CPU"


@pytest.mark.parametrize("dtype", flash.TYPES)
@pytest.mark.parametrize("grouped", [False, True])
def test_the_trial_believes_what_is_right(dtype: torch.dtype, grouped: bool) -> None:
    for backward in (False, True):
        assert trial.failure(PlainKernel(), torch.device("cpu"), dtype, 16, grouped, backward) is None


class Spoiled(PlainKernel):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        if self.what == "refusal":
            raise RuntimeError("no kernel for this device")
        if self.what == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.what == "window":
            arguments = (*arguments[:3], (-1, arguments[3][1]), *arguments[4:])
        out, lse = super().forward(*arguments)
        return out * (1.2 if self.what == "out" else 1), lse + (0.1 if self.what == "lse" else 0)

    def backward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        results = zip(("dq", "dk", "dv"), super().backward(*arguments), strict=True)
        dq, dk, dv = (x * (1.5 if name == self.what else 1) for name, x in results)
        return dq, dk, dv


@pytest.mark.parametrize("what", ["out", "lse", "window", "dq", "dk", "dv", "refusal"])
def test_the_trial_finds_what_is_wrong(what: str) -> None:
    text = trial.failure(Spoiled(what), torch.device("cpu"), torch.bfloat16, 16, True, True)
    assert text is not None and {"refusal": "no kernel", "window": "window"}.get(what, what) in text


def test_a_full_memory_is_no_verdict() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        trial.failure(Spoiled("memory"), torch.device("cpu"), torch.bfloat16, 16, True, True)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_the_operators_take_our_arguments(packed: bool) -> None:
    """Shapes and signatures only, without a device: tensors that hold no numbers."""
    args = decode(3, 4, 64)
    if packed:
        args = decode(1, 12, 192, cu_seqlens_q=ints(0, 4, 8, 12), cu_seqlens_k=ints(0, 64, 128, 192))
        args.q, args.k, args.v = (x.squeeze(0) for x in (args.q, args.k, args.v))
        args.max_seqlen_q, args.max_seqlen_k = 4, 64
    out, lse = static.forward(trial._moved(args, "meta", torch.bfloat16), kernel=flash.Kernel())
    assert out.shape == args.q.shape and lse.shape == ((8, 12) if packed else (3, 8, 4))
    given = backward_args(args, args.q, torch.zeros(lse.shape), args.q)
    moved: BackwardArgs = trial._moved(given, "meta", torch.bfloat16)
    moved.softmax_lse = moved.softmax_lse.float()
    found = flash.backward(flash.Kernel(), moved, facts(moved))
    assert [x.shape for x in found[:3] if x is not None] == [args.q.shape, args.k.shape, args.v.shape]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", flash.TYPES)
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_operators_pass_the_trial(dtype: torch.dtype, dim: int, grouped: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda", torch.cuda.current_device())
    assert trial.failure(trial.KERNEL, device, dtype, dim, grouped, backward=dim < 256) is None
