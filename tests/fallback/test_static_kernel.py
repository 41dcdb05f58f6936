"""The path that reads no length through a fused kernel: every call's numbers, whatever the kernel makes of empty rows.

The kernel here is plain torch behind the interface of the CUDA one, and refuses what that one could not take.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flash_attn3_sm121.call.arguments import ForwardArgs
from flash_attn3_sm121.fallback import cuda_kernel, kernels, static, static_kernel
from flash_attn3_sm121.fallback.problem import facts
from tests.fallback import generate, reference
from tests.fallback.compare import LSE_TOLERANCE, TOLERANCE, assert_close
from tests.fallback.operators import no_reads

# What a kernel gives out for a row that its mask hides completely: (out, lse).
EMPTY_ROWS = {"exact": (0.0, -torch.inf), "nan": (torch.nan, torch.inf), "average": (3.0, -1e30)}


class Kernel:
    """Plain attention, with a chosen answer for rows that see nothing; `shapes` has those of q and k of each call."""

    def __init__(self, empty: tuple[float, float]) -> None:
        self.empty = empty
        self.shapes: list[tuple[tuple[int, ...], tuple[int, ...], bool]] = []

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool = False, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        assert q.dtype == k.dtype == v.dtype and q.shape[-1] == k.shape[-1] == v.shape[-1] and not causal
        assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        assert q.shape[0] == k.shape[0] and q.shape[1] % k.shape[1] == 0 and k.shape == v.shape
        self.shapes.append((tuple(q.shape), tuple(k.shape), mask is not None))
        kind = torch.float64 if q.dtype == torch.float64 else torch.float32
        group = q.shape[1] // k.shape[1]
        keys, values = (tensor.to(kind).repeat_interleave(group, 1) for tensor in (k, v))
        scores = scale * q.to(kind) @ keys.transpose(-1, -2)
        if mask is not None:
            assert mask.dtype == q.dtype and mask.shape[-2:] == scores.shape[-2:]
            scores = scores + mask.expand(q.shape[0], q.shape[1], -1, -1)
        nothing = (scores == -torch.inf).all(-1)
        out = (scores.softmax(-1) @ values).masked_fill(nothing.unsqueeze(-1), self.empty[0])
        # As the CUDA kernel does: rows are dense before heads, and the lse is a slice of longer rows.
        long = torch.nn.functional.pad(scores.logsumexp(-1).masked_fill(nothing, self.empty[1]), (0, 5))
        return out.to(q.dtype).transpose(1, 2).contiguous().transpose(1, 2), long[:, :, : q.shape[2]]


@pytest.fixture
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """Parametrise indirectly with a name of EMPTY_ROWS; which calls it serves is for the real `pick` to say."""
    q = torch.zeros(1, 1, 1, 8)
    assert kernels.pick(q, q, q, None, static.Scoring(scale=1.0)) is not None, "and the self-check has run, and read"
    real, fake = kernels.pick, Kernel(EMPTY_ROWS[getattr(request, "param", "nan")])
    monkeypatch.setattr(static, "FUSED_ON", ("cpu",))
    monkeypatch.setattr(static.kernels, "pick", lambda *args: fake if real(*args) is not None else None)
    yield fake


@pytest.fixture
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """ "usual", "tiny" (small blocks and parts) or "many" (the same, and rows never count as few)."""
    if request.param != "usual":
        small = {"COPY_BYTES": 1, "MASK_ENTRIES": 1, "ROWS": 4, "LEAST_ROWS": 3, "KEY_GRAIN": 6, "PARTIAL_ENTRIES": 300}
        small |= {"SPLIT_KEYS": 4, "PART_KEYS": 2}
        small |= {"FOLDED_ROWS": 0} if request.param == "many" else {}
        for name, value in small.items():
            monkeypatch.setattr(static_kernel, name, value)
        monkeypatch.setattr(static.cuts, "BLOCK_ROWS", 4)
    return str(request.param)


def check(args: ForwardArgs, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    want, mine, before = reference.expected(args), copy.deepcopy(args), len(kernel.shapes)
    with no_reads(monkeypatch):
        out, lse = static.forward(mine)
    assert out.is_contiguous() and lse.is_contiguous() and lse.dtype == torch.float32
    assert_close(out, want.out, TOLERANCE[out.dtype], "out")
    assert_close(lse, want.lse, LSE_TOLERANCE[out.dtype], "lse")
    for name, found, expected in (("k", mine.k, want.k), ("v", mine.v, want.v)):
        pair = (tensor.double().nan_to_num(7.0) for tensor in (found, expected))
        assert_close(*pair, 1e-2, f"{name} cache")
    plain = args.softcap > 0 or args.qv is not None or args.v.shape[-1] > args.q.shape[-1]
    if facts(args).rows and facts(args).has_keys:
        assert (len(kernel.shapes) == before) == plain, "whether the kernel was called"


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


def run(make: str, start: int, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, count: int = 25) -> None:
    for seed in range(start, start + count):
        args = getattr(generate, make)(seed)
        if make == "cache" and args.seqused_k is not None:
            spoil(args)
        try:
            check(args, kernel, monkeypatch)
        except Exception as error:
            raise AssertionError(f"generate.{make}({seed}): {error}") from error


ALL_SIZES = pytest.mark.parametrize("sizes", ["usual", "tiny", "many"], indirect=True)
ALL_KERNELS = pytest.mark.parametrize("kernel", EMPTY_ROWS, indirect=True)


@ALL_SIZES
@ALL_KERNELS
@pytest.mark.parametrize("start", [310_000, 310_025])
def test_dense_and_packed(start: int, kernel: Kernel, sizes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run("dense", start, kernel, monkeypatch)


@ALL_SIZES
@ALL_KERNELS
@pytest.mark.parametrize("start", [410_000, 410_025, 410_050, 410_075])
def test_cache_with_nan_where_nothing_is(
    start: int, kernel: Kernel, sizes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("cache", start, kernel, monkeypatch)


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


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


LENGTHS = pytest.mark.parametrize("lengths", [(37, 5000, 0), (5000, 4999, 1)], ids=["some", "all"])


@ALL_KERNELS
@LENGTHS
@pytest.mark.parametrize(
    "fields",
    [{}, {"window_left": 700}, {"window_left": 4500}, {"attention_chunk": 640}, {"s_aux": torch.arange(8.0)}],
    ids=["causal", "window", "wide", "chunk", "sink"],
)
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_usual_sizes_agree_with_plain_arithmetic(
    rows: int, fields: dict[str, Any], lengths: tuple[int, ...], kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = decode(3, rows, 5000, seqused_k=ints(*lengths), **fields)
    for row, used in enumerate(lengths):
        args.k[row, used:], args.v[row, used:] = torch.nan, torch.inf
    found = static.forward(args)
    assert kernel.shapes
    monkeypatch.setattr(static, "FUSED_ON", ())
    want = static.forward(args)
    assert_close(found[0], want[0].double(), 1e-2, "out")
    assert_close(found[1], want[1].double(), 1e-4, "lse")


@pytest.mark.parametrize("paged", [False, True], ids=["dense", "paged"])
@pytest.mark.parametrize("sizes", ["usual", "tiny"], indirect=True)
def test_fp8(paged: bool, kernel: Kernel, sizes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = decode(2, 3, 32, seqused_k=ints(20, 7))
    for name in ("q", "k", "v"):
        setattr(args, name, getattr(args, name).to(torch.float8_e4m3fn))
        setattr(args, f"{name}_descale", torch.tensor([[0.5, 2.0], [1.5, 1.0]]))
    if paged:
        args.k, args.v = (cache.view(8, 8, 2, 16) for cache in (args.k, args.v))
        args.page_table = ints(3, 1, 7, 0, 2, 6, 5, 4).view(2, 4)
    args.k.view(torch.uint8)[0, 0, 0, :] = 0  # a key of zeros is in use
    check(args, kernel, monkeypatch)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_chunk_that_ends_behind_the_cache(rows: int, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """No length is given, so every key is in use; the keys that would follow are none, not the last one again."""
    check(decode(2, rows, 50, attention_chunk=16), kernel, monkeypatch)


@pytest.mark.parametrize("causal", [False, True])
def test_packed_keys_end_before_the_next_sequence(
    causal: bool, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = decode(3, 2, 20, cu_seqlens_k=ints(0, 15, 15, 60), max_seqlen_k=45)
    args.k, args.v = args.k.flatten(0, 1), args.v.flatten(0, 1)
    args.causal, args.window_right = causal, 0 if causal else -1
    check(args, kernel, monkeypatch)


def test_softcap_and_qv_stay_with_plain_arithmetic(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    used = ints(20, 7)
    check(decode(2, 1, 32, seqused_k=used, softcap=2.0), kernel, monkeypatch)
    check(decode(2, 1, 32, seqused_k=used, qv=torch.ones(2, 1, 8, 16, dtype=torch.bfloat16)), kernel, monkeypatch)
    assert not kernel.shapes


def test_without_the_kernel_plain_arithmetic_serves(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a CUDA graph capture."""
    monkeypatch.setattr(static.kernels, "pick", lambda *_: None)
    args = decode(2, 3, 32, seqused_k=ints(20, 0))
    want = reference.expected(args)
    assert_close(static.forward(args)[0], want.out, TOLERANCE[torch.bfloat16], "out")
    assert not kernel.shapes


def test_few_rows_read_each_key_once(kernel: Kernel) -> None:
    static.forward(decode(3, 2, 640, seqused_k=ints(5, 640, 0)))
    assert kernel.shapes == [((3, 2, 8, 16), (3, 2, 640, 16), True)], "query heads are rows"


def test_long_caches_are_cut_into_parts(kernel: Kernel) -> None:
    static.forward(decode(3, 1, 8192, seqused_k=ints(5, 8192, 0)))
    assert kernel.shapes == [((3 * 16, 2, 4, 16), (3 * 16, 2, 512, 16), True)]


def test_parts_that_would_be_copies_are_not_cut(kernel: Kernel) -> None:
    """A cache with heads before tokens: the parts of several sequences are no one batch."""
    args = decode(3, 1, 8192, seqused_k=ints(5, 8192, 0))
    args.k, args.v = (cache.transpose(1, 2).contiguous().transpose(1, 2) for cache in (args.k, args.v))
    static.forward(args)
    assert kernel.shapes == [((3, 2, 4, 16), (3, 2, 8192, 16), True)]


@pytest.mark.parametrize(("batch", "calls", "size"), [(1, 1, 4), (2, 2, 4), (5, 4, 5)])
def test_more_rows_take_views_of_the_keys(batch: int, calls: int, size: int, kernel: Kernel) -> None:
    static.forward(decode(batch, 100, 200, seqused_k=ints(*[150] * batch)))
    assert kernel.shapes == [((size, 2, 100, 16), (size, 2, 200, 16), True)] * calls


def test_a_cache_that_is_all_in_use_is_not_copied(kernel: Kernel) -> None:
    args = decode(2, 1, 4096, kv_heads=1)
    with Trace() as trace:
        static.forward(args)
    assert kernel.shapes == [((2, 1, 8, 16), (2, 1, 4096, 16), False)]
    assert not {"where", "index", "masked_fill_"} & set(trace.names())


def test_blocks_of_keys_are_bounded(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_kernel, "COPY_BYTES", 2 * 100 * 2 * 16 * 2)
    static.forward(decode(2, 1, 300, seqused_k=ints(5, 300)))
    assert [keys[2] for _, keys, _ in kernel.shapes] == [64, 64, 64, 64, 44]
    kernel.shapes.clear()
    monkeypatch.setattr(static_kernel, "COPY_BYTES", 1 << 26)
    monkeypatch.setattr(static_kernel, "MASK_ENTRIES", 100 * 130)
    static.forward(decode(1, 100, 300, seqused_k=ints(250)))
    assert [keys[2] for _, keys, _ in kernel.shapes] == [128, 128, 44]


class Trace(TorchDispatchMode):
    """The operators that run, without those that only make views; the fake kernel's own do not count."""

    VIEWS = ("view", "slice", "select", "transpose", "permute", "expand", "unsqueeze", "squeeze", "alias", "detach")

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not name.startswith(("_unsafe_view", "_reshape_alias", "promote_types", *self.VIEWS)):
            self.calls.append(f"{name} {[tuple(a.shape) for a in args if isinstance(a, Tensor)]}")
        return func(*args, **(kwargs or {}))

    def names(self) -> list[str]:
        return [call.split()[0] for call in self.calls]


def test_launches_do_not_depend_on_the_lengths(kernel: Kernel) -> None:
    traces = []
    for lengths in ((0, 1, 2), (31, 7, 30)):
        with Trace() as trace:
            static.forward(decode(3, 2, 32, seqused_k=ints(*lengths)))
        traces.append(trace.calls)
    assert traces[0] == traces[1]


class Silent:
    """A kernel without operators of its own but two, for the two results."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, causal: bool = False, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@pytest.mark.parametrize(("window", "most"), [(-1, 14), (511, 22)], ids=["full", "window"])
def test_a_small_step_is_few_launches(window: int, most: int, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static.kernels, "pick", lambda *_: Silent())
    args = decode(1, 1, 2048, window_left=window, seqused_k=ints(1000))
    with Trace() as trace:
        static.forward(args)
    assert len(trace.calls) <= most, trace.calls


@pytest.mark.parametrize("rows", [1, 3, 100], ids=["one", "few", "many"])
@pytest.mark.parametrize("window", [-1, 511], ids=["full", "window"])
def test_the_cuda_operators_take_our_arguments(rows: int, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes and signatures only, without a device: tensors that hold no numbers."""
    monkeypatch.setattr(static, "FUSED_ON", ("meta",))
    monkeypatch.setattr(static.kernels, "pick", lambda *_: cuda_kernel)
    args = decode(3, rows, 8192, window_left=window, seqused_k=ints(5, 8192, 0))
    args.q, args.k, args.v = (tensor.to("meta") for tensor in (args.q, args.k, args.v))
    args.seqused_k = ints(5, 8192, 0).to("meta")
    out, lse = static.forward(args)
    assert out.shape == args.q.shape and lse.shape == (3, 8, rows)
