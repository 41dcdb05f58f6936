"""What the engine does around kernels that leave rows unwritten, or read as far as they are told to."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from flash_attn3_sm121 import fallback
from flash_attn3_sm121.call import schemas
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.errors import CallError
from flash_attn3_sm121.native import library as native
from flash_attn3_sm121.native.buildfacts import BuildFacts
from tests.fakes.libraries import CAUSAL, Kernels, engine, half, install


class Partial(Kernels):
    """Writes the gradients of the used rows alone, as the real kernels do."""

    def bwd(self, *values: Any) -> tuple[Tensor, ...]:
        *_, dq, dk, dv = values[:9]
        used_q, used_k = values[11:13]
        for gradient, used in ((dq, used_q), (dk, used_k), (dv, used_k)):
            for rows, count in zip(gradient, used.tolist(), strict=True):
                rows[:count] = 1.0
        return (dq, dk, dv, *(torch.empty(0) for _ in range(5)))


@pytest.mark.parametrize("given", [False, True])
def test_gradients_of_rows_past_the_used_ones_are_zero(given: bool) -> None:
    q, k, v = half()
    used_q, used_k = (torch.tensor(x, dtype=torch.int32) for x in ([2, 0], [1, 3]))
    lengths = {"seqused_q": used_q, "seqused_k": used_k}
    args = BackwardArgs(dout=q, q=q, k=k, v=v, out=q, softmax_lse=torch.zeros(q.shape[:3]).mT, **lengths, **CAUSAL)
    into = tuple(torch.full_like(x, float("nan")) for x in (q, k, v)) if given else None
    found = engine(Partial().open).backward(args, into=into)  # type: ignore[arg-type]
    for gradient, used in ((found.dq, used_q), (found.dk, used_k), (found.dv, used_k)):
        rows = torch.arange(gradient.shape[1])[None, :] < used[:, None]
        assert torch.equal(gradient, rows[..., None, None].expand_as(gradient).to(gradient.dtype))


def test_positions_past_the_rotary_tables_are_stopped_too() -> None:
    kernels = Kernels()
    q, k, v = half(sq=1, sk=1)
    cache = torch.zeros(2, 16, 2, 16, dtype=torch.bfloat16)
    table = torch.ones(8, 8, dtype=torch.bfloat16)  # as long as half the cache
    args = {"q": q, "k": cache, "v": cache.clone(), "k_new": k, "v_new": v, **CAUSAL}
    args |= {"rotary_cos": table, "rotary_sin": table}
    serving = engine(kernels.open)

    def call(held: int, **more: Tensor) -> None:
        serving.forward(ForwardArgs(**args, seqused_k=torch.tensor([0, held], dtype=torch.int32), **more))

    with pytest.raises(RuntimeError, match="rotary_cos and rotary_sin hold 8 positions"):
        call(8)
    with pytest.raises(RuntimeError, match="rotary_cos and rotary_sin hold 8 positions"):
        call(7, seqlens_rotary=torch.tensor([8, 0], dtype=torch.int32))
    assert kernels.calls == []
    call(7)
    call(12, seqlens_rotary=torch.tensor([0, 7], dtype=torch.int32))
    assert len(kernels.calls) == 2


def test_the_lse_of_a_backward_is_made_contiguous() -> None:
    q, k, v = half()
    seen: list[Tensor] = []

    class Watching(Kernels):
        def bwd(self, *values: Any) -> tuple[Tensor, ...]:
            seen.append(values[5])
            return super().bwd(*values)

    serving = engine(Watching().open)
    out, lse, *_ = serving.forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))
    strided = torch.stack((lse, lse), dim=1)[:, 0]
    assert not strided.is_contiguous() and strided.stride(-1) == 1
    serving.backward(BackwardArgs(dout=out, q=q, k=k, v=v, out=out, softmax_lse=strided, **CAUSAL))
    assert seen[0].is_contiguous() and torch.equal(seen[0], lse)


@pytest.mark.parametrize("name", ["bwd", "_flash_attn_backward"])
@pytest.mark.parametrize("layout", [{}, {"seqused_q": torch.tensor([3, 5], dtype=torch.int32)}], ids=["dense", "used"])
def test_compiled_programs_get_row_sums_of_the_announced_shape(
    name: str, layout: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels pad them, and inductor stops a program whose tensors are not as the fakes said."""
    serving = engine(Kernels().open)
    install(monkeypatch, serving)
    q, k, v = half()
    out, lse, *_ = serving.forward(ForwardArgs(q=q, k=k, v=v, **CAUSAL))
    given = {n.replace("seqused", "sequed") if name != "bwd" else n: x for n, x in layout.items()}
    into = {f"d{n}": torch.empty_like(x) for n, x in (("q", q), ("k", k), ("v", v))}
    op = getattr(torch.ops.flash_attn_3, name)

    def sums(*tensors: Tensor) -> Tensor:
        found = op(*tensors, **given, **into, is_causal=True)
        return found[0] if name == "bwd" else found

    found = sums(out, q, k, v, out, lse)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = sums(*(mode.from_tensor(x) for x in (out, q, k, v, out, lse)))
    assert (found.shape, found.stride(), found.dtype) == (fake.shape, fake.stride(), fake.dtype)
    torch.testing.assert_close(found, (out.float() ** 2).sum(-1).transpose(1, 2))


@pytest.mark.parametrize("refuses", [False, True])
def test_combine_fills_out_at_every_head_dim(refuses: bool) -> None:
    """The kernel writes a padded copy where 4 does not divide the head dim; what it cannot read, the fallback does."""

    class Combining(Kernels):
        def combine(self, *values: Any) -> tuple[Tensor, Tensor]:
            if refuses:
                raise RuntimeError("FlashAttention-3: out_partial_padded has stride 6 ..., no multiple of 16 bytes")
            return fallback.combine(values[0], values[1])

        def open(self, path: Path, facts: BuildFacts) -> native.LoadedOps:
            return replace(super().open(path, facts), fwd_combine=self.combine)

    parts, lses = torch.randn(3, 2, 5, 4, 6), torch.randn(3, 2, 4, 5).transpose(-1, -2)
    out = torch.empty(2, 5, 4, 6)
    serving = engine(Combining().open)
    with pytest.warns(RuntimeWarning, match="16 bytes") if refuses else contextlib.nullcontext():
        merged, _ = serving.combine(parts, lses, out, None)
    assert merged.data_ptr() == out.data_ptr()
    torch.testing.assert_close(out, fallback.combine(parts, lses)[0])


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("strided", [False, True])
def test_combine_gets_what_the_kernel_reads(parts: int, rows: int, strided: bool) -> None:
    """It wants the LSE of one head row by row, and leaves the output of a single part unwritten (executed)."""

    class Combining(Kernels):
        def combine(self, *values: Any) -> tuple[Tensor, Tensor]:
            out_partial, lse_partial, out, out_dtype = values
            assert out_partial.shape[0] > 1 and out_partial.stride(-1) == lse_partial.stride(-2) == 1
            assert out is None or (out.stride(-1) == 1 and out_dtype == out.dtype)
            return fallback.combine(*values)

        def open(self, path: Path, facts: BuildFacts) -> native.LoadedOps:
            return replace(super().open(path, facts), fwd_combine=self.combine)

    outs, lses = torch.randn(parts, 2, rows, 4, 16), torch.randn(parts, 2, rows, 4)
    out = torch.empty(2, rows, 4, 16, 2, dtype=torch.bfloat16)[..., 0] if strided else None
    outs = torch.stack((outs, outs), dim=-1)[..., 0] if strided else outs
    found, lse = engine(Combining().open).combine(outs, lses, out, None)
    right, right_lse = fallback.combine(outs, lses, None, None if out is None else out.dtype)
    torch.testing.assert_close((found, lse), (right, right_lse))
    assert out is None or found.data_ptr() == out.data_ptr()


METADATA_CALL = (
    *(2, 1, 16, 4, 2, 16, 16, torch.bfloat16, torch.tensor([5, 6], dtype=torch.int32), *[None] * 6),
    *(0, True, -1, -1, 0, False, 0, None, 0),
)
ANOTHER_CALL = {
    "batch_size": 1, "max_seqlen_q": 2, "max_seqlen_k": 6, "num_heads": 8, "qkv_dtype": torch.float8_e4m3fn,
    "seqused_q": torch.tensor([1, 1], dtype=torch.int32), "page_size": 16, "max_seqlen_k_new": 1, "is_causal": False,
    "window_size_left": 3, "has_softcap": True, "num_splits": 16, "pack_gqa": False, "sm_margin": 8,
}  # fmt: skip


def test_metadata_of_a_fallback_or_another_call_is_never_handed_to_a_kernel() -> None:
    """Executed, kernels that read it wrote past the partial results, or left rows of the output as they were.

    Those were 16 splits for a call with 2; the longest sequence for the cache's capacity, a window lying between them;
    and rows counted without groups (pack_gqa=False) where keys are split.
    """
    q, k, v = half(sq=1, sk=16)
    kernels = Kernels()
    serving = engine(kernels.open)
    call = dict(zip(schemas.METADATA_NAMES, METADATA_CALL, strict=True))
    own = serving.scheduler_metadata(METADATA_CALL)
    assert (own.shape, bool(own.all())) == ((4 * 3 + 1,), True)
    others = [serving.scheduler_metadata(tuple((call | {n: x}).values())) for n, x in ANOTHER_CALL.items()]
    for metadata in (own, torch.zeros_like(own), *others):
        args = ForwardArgs(q=q, k=k, v=v, seqused_k=call["seqused_k"], scheduler_metadata=metadata, **CAUSAL)
        serving.forward(replace(args, num_splits=0))
    assert kernels.calls[0].scheduler_metadata is own
    assert [seen.scheduler_metadata for seen in kernels.calls[1:]] == [None] * (1 + len(others))


def test_metadata_is_made_of_lengths_as_kernels_read_them() -> None:
    seen: list[tuple[Any, ...]] = []

    class Watching(Kernels):
        def metadata(self, *values: Any) -> Tensor:
            seen.append(values)
            return super().metadata(*values)

    call = dict(zip(schemas.METADATA_NAMES, METADATA_CALL, strict=True))
    call |= {"seqused_k": torch.tensor([[5, 0], [6, 0]])[:, 0], "cu_seqlens_q": torch.tensor([0, 1, 2])}
    engine(Watching().open).scheduler_metadata(tuple(call.values()))
    read = dict(zip(schemas.METADATA_NAMES, seen[0], strict=True))
    for name, values in (("seqused_k", [5, 6]), ("cu_seqlens_q", [0, 1, 2])):
        assert read[name].dtype == torch.int32 and read[name].is_contiguous() and read[name].tolist() == values


@pytest.mark.parametrize(
    ("name", "short"), [("seqused_k", [5]), ("leftpad_k", [0]), ("cu_seqlens_q", [0, 1]), ("cu_seqlens_k_new", [0, 1])]
)
def test_metadata_of_lengths_that_are_too_few_is_refused(name: str, short: list[int]) -> None:
    """The library does not look at their number, and its kernel reads behind them."""
    kernels = Kernels()
    call = dict(zip(schemas.METADATA_NAMES, METADATA_CALL, strict=True))
    with pytest.raises(CallError, match=r"must have shape \(\d,\) = \(batch_size"):
        engine(kernels.open).scheduler_metadata(tuple((call | {name: torch.tensor(short)}).values()))
    padded = torch.tensor([0, 1, 2, 0, 0, 0])  # longer ones are what CUDA graphs have
    engine(kernels.open).scheduler_metadata(tuple((call | {name: padded}).values()))
