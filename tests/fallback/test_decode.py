"""Decoding of a batch at once, and the plain dense call: every form of the way, against the fp64 reference."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from flash_attn3_sm121 import fallback
from flash_attn3_sm121.call.arguments import ForwardArgs
from flash_attn3_sm121.fallback import cpu_kernel, decode, host, whole
from tests.fallback import reference
from tests.fallback.compare import LSE_TOLERANCE, TOLERANCE, assert_close


class Launches:
    """Counts the fused kernel's calls and keeps the shapes of what it got."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        forward = cpu_kernel.forward

        def counting(q: Tensor, k: Tensor, v: Tensor, **more: Any) -> tuple[Tensor, Tensor]:
            self.shapes.append((tuple(q.shape), tuple(k.shape)))
            return forward(q, k, v, **more)

        monkeypatch.setattr(cpu_kernel, "forward", counting)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """Parts of 8 keys at most, so that small caches are cut like large ones."""
    monkeypatch.setattr(decode, "PART_KEYS", 8)
    monkeypatch.setattr(decode, "LEAST_KEYS", 4)
    monkeypatch.setattr(decode, "SHORT_KEYS", 3)
    q = torch.randn(2, 2, 1, 8)
    fallback.forward(ForwardArgs(q=q, k=q, v=q, softmax_scale=1.0))  # the self-check is not counted
    return Launches(monkeypatch)


def randoms(*shapes: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def step(
    lengths: list[int], *, heads: int = 4, kv_heads: int = 2, rows: int = 1, capacity: int = 64,
    dtype: torch.dtype = torch.bfloat16, dim: int = 16, **fields: Any,
) -> ForwardArgs:  # fmt: skip
    batch = len(lengths)
    q, k, v = randoms((batch, rows, heads, dim), *[(batch, capacity, kv_heads, dim)] * 2, dtype=dtype)
    for b, length in enumerate(lengths):
        k[b, length:], v[b, length:] = torch.nan, torch.nan  # whoever reads what is not used will show it
    used = torch.tensor(lengths, dtype=torch.int32)
    return ForwardArgs(q=q, k=k, v=v, seqused_k=used, **{"softmax_scale": 0.25, **fields})


def check(args: ForwardArgs) -> tuple[Tensor, Tensor]:
    out, lse = host.forward(args)
    clean = [torch.nan_to_num(x) if x.dtype.is_floating_point else x for x in (args.k, args.v)]
    names = [name for name in ForwardArgs.__slots__ if name not in ("k", "v")]
    want = reference.expected(ForwardArgs(k=clean[0], v=clean[1], **{name: getattr(args, name) for name in names}))
    assert out.is_contiguous() and lse.is_contiguous() and (out.dtype, lse.dtype) == (args.q.dtype, torch.float32)
    assert_close(out, want.out, TOLERANCE[args.q.dtype], "out")
    assert_close(lse, want.lse, LSE_TOLERANCE[args.q.dtype], "lse")
    return out, lse


RAGGED = [61, 0, 1, 17, 64, 33, 3, 8]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 3), (8, 1), (1, 1), (20, 20), (24, 3)])
def test_ragged(launches: Launches, heads: int, kv_heads: int, dtype: torch.dtype, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(step(RAGGED, heads=heads, kv_heads=kv_heads, dtype=dtype))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("fields", [
    {"causal": True, "window_left": 11, "window_right": 0}, {"window_left": 5, "window_right": 2},
    {"attention_chunk": 7}, {"attention_chunk": 8, "window_left": 3},
], ids=["window", "two sides", "chunk", "window in a chunk"])  # fmt: skip
def test_windows_of_one_row(launches: Launches, fields: dict[str, Any]) -> None:
    check(step(RAGGED, **fields))


def test_several_rows_without_a_mask(launches: Launches) -> None:
    check(step(RAGGED, rows=3))
    assert all(q[-2] <= 12 for q, _ in launches.shapes), "rows and heads of a group are folded"


def test_all_heads_are_one_product_where_they_are_few(launches: Launches) -> None:
    check(step([64, 64], heads=4, kv_heads=2))
    ((q, k),) = launches.shapes
    assert q == (2, 8, 4, 32) and k == (2, 8, 8, 32), "one call: two sequences, eight parts, both heads side by side"
    launches.shapes.clear()
    check(step([64], heads=24, kv_heads=12))
    ((q, k),) = launches.shapes
    assert q == (8, 12, 2, 16) and k == (8, 12, 8, 16), "too many heads: each has its product"
    launches.shapes.clear()
    check(step([64], heads=2, kv_heads=2, dtype=torch.float32))
    ((q, k),) = launches.shapes
    assert k == (8, 2, 8, 16), "fp32 gains nothing by it"


def test_a_lone_row_is_doubled_for_sixteen_bits(launches: Launches) -> None:
    check(step([64], heads=20, kv_heads=20))
    assert launches.shapes[0][0] == (8, 20, 2, 16)


def test_equal_windows_are_read_in_pairs(launches: Launches) -> None:
    window = {"causal": True, "window_left": 7, "window_right": 0}
    check(step([60, 20, 8, 33, 44], **window))
    assert [k for _, k in launches.shapes] == [(2, 1, 8, 32), (2, 1, 8, 32), (1, 1, 8, 32)]
    launches.shapes.clear()
    order = torch.tensor([4, 3, 2, 1, 0], dtype=torch.int32)  # a cache row that lies before the other cannot be paired
    check(_permuted([60, 20, 8, 33, 44], order, window))
    assert [k[0] for _, k in launches.shapes] == [1] * 5


def _permuted(lengths: list[int], order: Tensor, fields: dict[str, Any]) -> ForwardArgs:
    args = step(lengths, **fields)
    rows = order.long().argsort()
    args.k, args.v = args.k[rows], args.v[rows]
    args.kv_batch_idx = order
    return args


def test_leftovers_of_all_sequences_go_in_one_call(launches: Launches) -> None:
    check(step([61, 53, 3, 37]))
    small = [k for _, k in launches.shapes if k[-2] <= 7 and k[0] == 4]
    assert len(launches.shapes) == 4 and len(small) == 1


def test_an_infinite_key_spoils_its_own_head_only(launches: Launches) -> None:
    args = step([64, 64])
    args.k[0, 5, 1, 0] = torch.inf
    alone = step([64, 64])
    out, lse = host.forward(args)
    want, want_lse = host.forward(alone)
    assert torch.equal(out[1], want[1]) and torch.equal(lse[1], want_lse[1])
    torch.testing.assert_close(out[0, :, :2], want[0, :, :2], atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(lse[0, :2], want_lse[0, :2])


def test_packed_single_rows_sinks_and_an_output(launches: Launches) -> None:
    args = step([40, 64, 9], s_aux=torch.linspace(-1, 1, 4))
    whole_out, whole_lse = check(args)
    args.q, args.cu_seqlens_q, args.max_seqlen_q = args.q[:, 0], torch.arange(4, dtype=torch.int32), 1
    out, lse = check(args)
    assert torch.equal(out, whole_out[:, 0]) and torch.equal(lse, whole_lse[..., 0].transpose(0, 1))
    args.out = torch.empty_like(args.q)
    assert host.forward(args)[0] is args.out and torch.equal(args.out, out)


def test_narrow_values_and_strided_caches(launches: Launches) -> None:
    args = step(RAGGED)
    args.v = args.v[..., :8]
    check(args)
    args = step(RAGGED)
    args.k, args.v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (args.k, args.v))  # heads first
    check(args)
    assert all(k[-1] == 16 for _, k in launches.shapes[-3:]), "heads that do not lie side by side stay apart"


# -- the plain dense call


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "no mask"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_plain_call_is_one_launch(launches: Launches, dtype: torch.dtype, causal: bool, kv_heads: int) -> None:
    q, k, v = randoms((2, 70, 4, 16), *[(2, 70, kv_heads, 16)] * 2, dtype=dtype)
    args = ForwardArgs(q=q, k=k, v=v, softmax_scale=0.25, causal=causal, window_right=0 if causal else -1)
    out, lse = fallback.forward(args)
    assert len(launches.shapes) == 1
    want = reference.expected(args)
    assert out.is_contiguous() and lse.is_contiguous() and (out.dtype, lse.dtype) == (dtype, torch.float32)
    assert_close(out, want.out, TOLERANCE[dtype], "out")
    assert_close(lse, want.lse, LSE_TOLERANCE[dtype], "lse")
    planned, planned_lse = host.forward(args)
    assert torch.equal(out, planned) and torch.equal(lse, planned_lse)


PLAIN = {"softmax_scale": 0.25, "causal": True, "window_right": 0}


@pytest.mark.parametrize("fields", [
    {"window_left": 9}, {"attention_chunk": 8}, {"s_aux": torch.zeros(4)}, {"softcap": 1.0},
    {"seqused_k": torch.tensor([9, 70], dtype=torch.int32)}, {"causal": False}, {"causal": False, "window_right": 3},
    {"out": torch.empty(2, 70, 4, 16)}, {"leftpad_k": torch.zeros(2, dtype=torch.int32)},
], ids=lambda fields: "+".join(fields))  # fmt: skip
def test_anything_more_is_not_plain(fields: dict[str, Any]) -> None:
    q, k, v = randoms(*[(2, 70, 4, 16)] * 3, dtype=torch.float32)
    assert whole.serves(ForwardArgs(q=q, k=k, v=v, **PLAIN))
    args = ForwardArgs(q=q, k=k, v=v, **{**PLAIN, **fields})
    if "causal" in fields and "window_right" not in fields:
        args.window_right = 0
    assert not whole.serves(args)
    assert_close(fallback.forward(args)[0], reference.expected(args).out, 2e-5, "out")


def test_unlike_shapes_are_not_plain() -> None:
    q, k, v = randoms((1, 6, 2, 16), (1, 9, 2, 16), (1, 9, 2, 8), dtype=torch.float32)
    for args in (
        ForwardArgs(q=q, k=k, v=k, **PLAIN),
        ForwardArgs(q=k, k=k, v=v, **PLAIN),
        ForwardArgs(q=q, k=k, v=k, softmax_scale=0.25),
        ForwardArgs(q=k.transpose(-1, -2).contiguous().transpose(-1, -2), k=k, v=k, **PLAIN),
    ):
        assert not whole.serves(args)
        assert_close(fallback.forward(args)[0], reference.expected(args).out, 2e-5, "out")


def test_copies_of_pages_are_made_one_sequence_at_a_time() -> None:
    from tests.fallback.operators import Largest

    class Live(Largest):
        """Also adds up what index_select gave and nobody has let go of."""

        def __init__(self, *given: Tensor) -> None:
            super().__init__(*given)
            self.gathered: list[weakref.ref[Tensor]] = []
            self.most = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = super().__torch_dispatch__(func, types, args, kwargs)
            if func is torch.ops.aten.index_select.default:
                self.gathered.append(weakref.ref(result))
                self.most = max(self.most, sum(one() is not None for one in self.gathered))
            return result

    table = torch.arange(24, dtype=torch.int32).view(6, 4)
    q, k, v = randoms((6, 1, 4, 16), *[(24, 16, 2, 16)] * 2, dtype=torch.bfloat16)
    used = torch.tensor([64, 64, 40, 64, 33, 64], dtype=torch.int32)
    args = ForwardArgs(q=q, k=k, v=v, seqused_k=used, page_table=table, softmax_scale=0.25)
    check(args)
    with Live(q, k, v) as seen:
        host.forward(args)
    assert len(seen.gathered) == 12 and seen.most <= 4
