"""Each corner of the contract by name, on numbers small enough to reason about."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flash_attn3_sm121 import fallback
from flash_attn3_sm121.call.arguments import ForwardArgs
from flash_attn3_sm121.fallback import host, static
from tests.fallback import reference
from tests.fallback.compare import assert_close

ENGINES = pytest.mark.parametrize("engine", [host.forward, static.forward], ids=["host", "static"])


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def randoms(*shapes: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def call(q: tuple[int, ...], k: tuple[int, ...], **fields: Any) -> ForwardArgs:
    tensors = randoms(q, k, k)
    return ForwardArgs(q=tensors[0], k=tensors[1], v=tensors[2], **{"softmax_scale": 0.25, **fields})


def same(engine: Any, args: ForwardArgs, tolerance: float = 2e-5) -> tuple[Tensor, Tensor]:
    want = reference.expected(args)
    out, lse = engine(args)
    assert_close(out, want.out, tolerance, "out")
    assert_close(lse, want.lse, tolerance, "lse")
    return out, lse


@ENGINES
def test_causal_is_bottom_right(engine: Any) -> None:
    args = call((1, 2, 1, 8), (1, 5, 1, 8), causal=True, window_right=0)
    out, _ = same(engine, args)
    alone = ForwardArgs(q=args.q[:, :1], k=args.k[:, :4], v=args.v[:, :4], softmax_scale=0.25)
    assert_close(engine(alone)[0], out[:, :1].double(), 1e-6, "the first of two rows sees four of five keys")


@ENGINES
def test_causal_overrides_the_right_window(engine: Any) -> None:
    wide = call((1, 6, 1, 8), (1, 6, 1, 8), causal=True, window_left=2, window_right=2)
    narrow = call((1, 6, 1, 8), (1, 6, 1, 8), causal=True, window_left=2, window_right=0)
    assert torch.equal(engine(wide)[0], engine(narrow)[0])


@ENGINES
def test_any_negative_window_is_unlimited(engine: Any) -> None:
    whole = engine(call((1, 6, 1, 8), (1, 6, 1, 8)))
    for value in (-1, -2, -1000):
        found = engine(call((1, 6, 1, 8), (1, 6, 1, 8), window_left=value, window_right=value))
        assert torch.equal(found[0], whole[0])


@ENGINES
def test_chunk_floors_for_negative_positions(engine: Any) -> None:
    _, lse = same(engine, call((1, 7, 1, 8), (1, 4, 1, 8), attention_chunk=3))
    assert lse[0, 0].isinf().tolist() == [True] * 3 + [False] * 4


@ENGINES
def test_fully_masked_rows_give_zero_and_minus_infinity(engine: Any) -> None:
    out, lse = engine(call((1, 5, 2, 8), (1, 3, 2, 8), causal=True, window_right=0))
    assert not out[:, :2].any() and (lse[:, :, :2] == -torch.inf).all() and lse[:, :, 2:].isfinite().all()


@ENGINES
def test_a_sequence_without_keys_in_a_batch_gives_minus_infinity(engine: Any) -> None:
    args = call((2, 3, 2, 8), (2, 4, 2, 8), seqused_k=ints(4, 0))
    out, lse = engine(args)
    assert not out[1].any() and (lse[1] == -torch.inf).all() and lse[0].isfinite().all()
    packed = call((5, 2, 8), (4, 2, 8), cu_seqlens_q=ints(0, 2, 5), cu_seqlens_k=ints(0, 4, 4), max_seqlen_q=3)
    out, lse = engine(packed)
    assert not out[2:].any() and (lse[:, 2:] == -torch.inf).all() and lse[:, :2].isfinite().all()


@ENGINES
def test_no_keys_at_all_give_plus_infinity(engine: Any) -> None:
    out, lse = engine(call((2, 3, 2, 8), (2, 0, 2, 8)))
    assert not out.any() and (lse == torch.inf).all() and lse.shape == (2, 2, 3)
    packed = call((5, 2, 8), (0, 2, 8), cu_seqlens_q=ints(0, 2, 5), cu_seqlens_k=ints(0, 0, 0), max_seqlen_q=3)
    out, lse = engine(packed)
    assert not out.any() and (lse == torch.inf).all() and lse.shape == (2, 5)


@ENGINES
def test_keys_that_no_sequence_has_still_count_as_keys(engine: Any) -> None:
    """As upstream, whose kernels run: +inf is for a k that holds nothing, not for a max_seqlen_k of 0."""
    packed = call((5, 2, 8), (4, 2, 8), cu_seqlens_q=ints(0, 2, 5), cu_seqlens_k=ints(0, 0, 0), max_seqlen_q=3)
    packed.max_seqlen_k = 0
    out, lse = same(engine, packed)
    assert not out.any() and (lse == -torch.inf).all()


@ENGINES
def test_rows_past_seqused_q_give_zero_and_minus_infinity(engine: Any) -> None:
    out, lse = same(engine, call((2, 4, 2, 8), (2, 4, 2, 8), seqused_q=ints(1, 4)))
    assert not out[0, 1:].any() and (lse[0, :, 1:] == -torch.inf).all()


@ENGINES
def test_packed_rows_behind_the_last_offset(engine: Any) -> None:
    args = call((6, 2, 8), (6, 2, 8), cu_seqlens_q=ints(0, 4), cu_seqlens_k=ints(0, 6), max_seqlen_q=4)
    out, lse = same(engine, args)
    assert not out[4:].any() and (lse[:, 4:] == -torch.inf).all()


@ENGINES
def test_offsets_padded_with_repeated_totals(engine: Any) -> None:
    plain = call((8, 2, 8), (8, 2, 8), cu_seqlens_q=ints(0, 3, 8), cu_seqlens_k=ints(0, 3, 8), max_seqlen_q=5)
    padded = call((8, 2, 8), (8, 2, 8), cu_seqlens_q=ints(0, 3, 8, 8, 8), cu_seqlens_k=ints(0, 3, 8, 8, 8))
    padded.max_seqlen_q = 5
    for found, want in zip(engine(padded), engine(plain), strict=True):
        assert torch.equal(found, want)


@ENGINES
@pytest.mark.parametrize("packed", ["q", "k"])
def test_one_side_packed(engine: Any, packed: str) -> None:
    offsets = {f"cu_seqlens_{packed}": ints(0, 2, 7), f"max_seqlen_{packed}": 5}
    q, k = ((7, 4, 8), (2, 6, 2, 8)) if packed == "q" else ((2, 6, 4, 8), (7, 2, 8))
    same(engine, call(q, k, causal=True, window_right=0, **offsets))


@ENGINES
def test_scale_comes_before_the_softcap(engine: Any) -> None:
    args = call((1, 1, 1, 8), (1, 1, 1, 8), softcap=2.0, softmax_scale=0.5)
    _, lse = engine(args)
    product = float(args.q.flatten() @ args.k.flatten())
    assert lse.item() == pytest.approx(2.0 * math.tanh(0.5 * product / 2.0), rel=1e-5)


@ENGINES
def test_descales_are_ignored_unless_fp8(engine: Any) -> None:
    plain, scaled = (call((1, 3, 2, 8), (1, 3, 2, 8)) for _ in range(2))
    scaled.q_descale = scaled.k_descale = scaled.v_descale = torch.full((1, 2), 7.0)
    assert torch.equal(engine(plain)[0], engine(scaled)[0])


@ENGINES
def test_descales_that_are_ignored_may_have_any_shape(engine: Any) -> None:
    args = call((3, 1, 2, 8), (3, 4, 2, 8), seqused_k=ints(0, 3, 1))
    args.k_new, args.v_new = randoms((3, 1, 2, 8), (3, 1, 2, 8), seed=2)
    args.q_descale = args.k_descale = args.v_descale = torch.tensor(7.0)
    same(engine, args)


@ENGINES
@pytest.mark.parametrize("paged", [False, True], ids=["dense", "paged"])
def test_fp8_is_dequantised_with_descales_of_any_stride(engine: Any, paged: bool) -> None:
    args = call((2, 3, 4, 16), (4, 4, 2, 16) if paged else (2, 8, 2, 16), qv=randoms((2, 3, 4, 16), seed=3)[0])
    args.page_table = ints(3, 0, 2, 1).view(2, 2) if paged else None
    for name in ("q", "k", "v", "qv"):
        setattr(args, name, getattr(args, name).to(torch.float8_e4m3fn))
    scales = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(4)) + 0.5
    args.q_descale, args.k_descale, args.v_descale = scales.unbind(-1)
    assert args.q_descale.stride() == (6, 3)
    want = reference.expected(args)
    out, lse = engine(args)
    assert out.dtype == torch.bfloat16
    assert_close(out, want.out, 1e-2, "out")
    assert_close(lse, want.lse, 1e-5, "lse")
    args.q_descale = None
    assert_close(engine(args)[0], reference.expected(args).out, 1e-2, "one descale absent")


@ENGINES
def test_fp8_cache_takes_fp8_tokens(engine: Any) -> None:
    args = call((2, 1, 2, 16), (2, 4, 2, 16), seqused_k=ints(0, 3))
    args.k_new, args.v_new = randoms((2, 1, 2, 16), (2, 1, 2, 16), seed=8)
    for name in ("q", "k", "v", "k_new", "v_new"):
        setattr(args, name, getattr(args, name).to(torch.float8_e4m3fn))
    want = reference.expected(args)
    out, _ = engine(args)
    assert_close(out, want.out, 1e-2, "out")
    assert torch.equal(args.k.float(), want.k.float()) and torch.equal(args.v.float(), want.v.float())


@ENGINES
def test_nan_bytes_of_an_fp8_cache(engine: Any) -> None:
    """Behind the used positions they have no effect; one in use makes NaN of the rows that see it, in its sequence."""
    args = call((2, 2, 2, 16), (2, 8, 2, 16), seqused_k=ints(4, 6), causal=True, window_right=0)
    for name in ("q", "k", "v"):
        setattr(args, name, getattr(args, name).to(torch.float8_e4m3fn))
    clean, _ = engine(args)
    for tensor in (args.k, args.v):
        for row, used in enumerate((4, 6)):
            tensor[row, used:].view(torch.uint8).fill_(0x7F)
    assert torch.equal(engine(args)[0], clean) and clean.isfinite().all()
    args.v[0, 3].view(torch.uint8).fill_(0xFF)
    out, _ = engine(args)
    assert out[0, 1].isnan().all() and torch.equal(out[1], clean[1])


@ENGINES
def test_a_bf16_cache_under_an_fp32_model(engine: Any) -> None:
    args = call((2, 1, 4, 16), (2, 8, 2, 16), causal=True, window_right=0, seqused_k=ints(3, 5))
    args.k, args.v = args.k.bfloat16(), args.v.bfloat16()
    args.k_new, args.v_new = randoms((2, 1, 2, 16), (2, 1, 2, 16), seed=1)
    out, _ = same(engine, args)
    assert out.dtype == torch.float32
    assert torch.equal(args.k[0, 3], args.k_new[0, 0].bfloat16())


@ENGINES
def test_cache_lengths_differ_per_row(engine: Any) -> None:
    args = call((3, 1, 4, 16), (3, 9, 2, 16), causal=True, window_right=0, seqused_k=ints(1, 9, 4))
    out, _ = same(engine, args)
    for row, used in enumerate((1, 9, 4)):
        one = ForwardArgs(
            q=args.q[row : row + 1], k=args.k[row : row + 1, :used], v=args.v[row : row + 1, :used], softmax_scale=0.25
        )
        assert_close(engine(one)[0][0], out[row].double(), 1e-6, f"row {row}")


@ENGINES
def test_masks_are_relative_to_the_padding_on_the_left(engine: Any) -> None:
    padded = call((2, 2, 2, 8), (2, 10, 2, 8), attention_chunk=3, seqused_k=ints(9, 6), leftpad_k=ints(2, 5))
    out, _ = same(engine, padded)
    shifted = ForwardArgs(
        q=padded.q[:1], k=padded.k[:1, 2:9], v=padded.v[:1, 2:9], softmax_scale=0.25, attention_chunk=3
    )
    assert_close(engine(shifted)[0], out[:1].double(), 1e-6, "positions count from the first valid key")


@ENGINES
def test_unallocated_pages_are_never_read(engine: Any) -> None:
    args = call((2, 1, 2, 8), (6, 4, 2, 8), seqused_k=ints(4, 5), causal=True, window_right=0)
    args.page_table = ints(5, -1, -1, 2, 0, -1).view(2, 3)
    args.k[1], args.v[1] = torch.nan, torch.nan
    same(engine, args)


def test_pages_that_the_window_hides_may_be_gone() -> None:
    args = call((1, 1, 2, 8), (6, 4, 2, 8), seqused_k=ints(11), causal=True, window_left=3, window_right=0)
    args.page_table = ints(-1, 3, 4).view(1, 3)
    full = call((1, 1, 2, 8), (6, 4, 2, 8), seqused_k=ints(11), causal=True, window_left=3, window_right=0)
    full.page_table = ints(0, 3, 4).view(1, 3)
    assert_close(host.forward(args)[0], reference.expected(full).out, 2e-5, "out")


@ENGINES
def test_batch_index_picks_the_row_of_the_page_table(engine: Any) -> None:
    args = call((2, 1, 2, 8), (6, 4, 2, 8), seqused_k=ints(3, 7), kv_batch_idx=ints(2, 0))
    args.page_table = ints(0, 1, 2, 3, 4, 5).view(3, 2)
    args.k_new, args.v_new = randoms((2, 1, 2, 8), (2, 1, 2, 8), seed=2)
    same(engine, args)
    assert torch.equal(args.k[4, 3], args.k_new[0, 0]) and torch.equal(args.k[1, 3], args.k_new[1, 0])


@ENGINES
def test_appending_lands_where_the_lengths_say(engine: Any) -> None:
    args = call((2, 1, 2, 8), (4, 6, 2, 8), seqused_k=ints(0, 4), kv_batch_idx=ints(3, 1), leftpad_k=ints(0, 2))
    args.k_new, args.v_new = randoms((2, 2, 2, 8), (2, 2, 2, 8), seed=2)
    before = args.k.clone()
    same(engine, args)
    assert torch.equal(args.k[3, 0:2], args.k_new[0]) and torch.equal(args.k[1, 4:6], args.k_new[1])
    before[3, 0:2], before[1, 4:6] = args.k_new[0], args.k_new[1]
    assert torch.equal(args.k, before)


@ENGINES
def test_padding_behind_packed_new_tokens_is_not_written(engine: Any) -> None:
    for offsets in ((0, 1, 3), (0, 0, 0)):
        args = call((2, 1, 2, 8), (2, 6, 2, 8), seqused_k=ints(2, 1), cu_seqlens_k_new=ints(*offsets))
        args.k_new, args.v_new = randoms((5, 2, 8), (5, 2, 8), seed=2)
        want = reference.expected(args)
        engine(args)
        assert torch.equal(args.k, want.k) and torch.equal(args.v, want.v)


@ENGINES
@pytest.mark.parametrize("interleaved", [True, False], ids=["interleaved", "halves"])
@pytest.mark.parametrize("local", [True, False], ids=["causal", "everything"])
def test_rotary_turns_rows_of_q_apart_only_under_a_local_mask(engine: Any, local: bool, interleaved: bool) -> None:
    args = call((1, 3, 2, 32), (1, 16, 1, 32), seqused_k=ints(4), rotary_interleaved=interleaved)
    args.causal, args.window_right = local, 0 if local else -1
    args.k_new, args.v_new = randoms((1, 3, 1, 32), (1, 3, 1, 32), seed=2)
    angles = torch.rand(32, 8, generator=torch.Generator().manual_seed(9)) * 6
    args.rotary_cos, args.rotary_sin = angles.cos(), angles.sin()
    q = args.q.clone()
    same(engine, args)
    assert torch.equal(args.q, q), "q is not modified"
    # A right window that hides nothing (>= rows - 1) is no mask: rotary follows what is left after normalisation.
    if not local:
        want = engine(args)[0]
        args.window_right = 2
        assert torch.equal(engine(args)[0], want)


@ENGINES
def test_rotary_takes_a_window_for_one_by_max_seqlen_q(engine: Any) -> None:
    """As upstream: a bound above the number of rows leaves a right window that hides nothing a window."""
    args = call((2, 2, 32), (1, 16, 1, 32), seqused_k=ints(4), cu_seqlens_q=ints(0, 2), max_seqlen_q=7, window_right=1)
    args.k_new, args.v_new = randoms((1, 2, 1, 32), (1, 2, 1, 32), seed=2)
    angles = torch.rand(32, 8, generator=torch.Generator().manual_seed(9)) * 6
    args.rotary_cos, args.rotary_sin = angles.cos(), angles.sin()
    same(engine, args)


@ENGINES
def test_rotary_lengths_may_differ_from_cache_lengths(engine: Any) -> None:
    args = call((2, 2, 2, 16), (2, 8, 1, 16), seqused_k=ints(1, 4), seqlens_rotary=ints(9, 0), leftpad_k=ints(1, 0))
    args.causal, args.window_right = True, 0
    args.k_new, args.v_new = randoms((2, 2, 1, 16), (2, 2, 1, 16), seed=2)
    angles = torch.rand(32, 8, generator=torch.Generator().manual_seed(9)) * 6
    args.rotary_cos, args.rotary_sin = angles.cos(), angles.sin()
    same(engine, args)


@ENGINES
def test_sinks_join_the_denominator_and_the_lse(engine: Any) -> None:
    args = call((1, 3, 2, 8), (1, 2, 2, 8), causal=True, window_right=0, s_aux=torch.tensor([0.5, -torch.inf]))
    out, lse = engine(args)
    args.s_aux = None
    plain, plain_lse = engine(args)
    joined = torch.logaddexp(plain_lse[0, 0], torch.tensor(0.5))
    assert_close(lse[0, 0], joined.double(), 1e-6, "lse")
    assert_close(out[0, 1:, 0], (plain[0, 1:, 0] * (plain_lse - joined)[0, 0, 1:, None].exp()).double(), 1e-6, "out")
    assert lse[0, 0, 0].item() == 0.5 and not out[0, 0].any(), "a row without keys: all weight is the sink's"
    assert torch.equal(lse[0, 1], plain_lse[0, 1]) and torch.equal(out[:, :, 1], plain[:, :, 1])


@ENGINES
def test_out_is_written_when_given(engine: Any) -> None:
    args = call((2, 3, 2, 8), (2, 3, 2, 8))
    want = engine(args)[0]
    args.out = torch.full((2, 2, 3, 8), torch.nan).transpose(1, 2)
    out, _ = engine(args)
    assert out is args.out and torch.equal(out, want)


@ENGINES
@pytest.mark.parametrize(("d", "dv"), [(8, 8), (16, 16), (32, 32), (256, 256), (192, 128), (64, 512), (64, 24)])
def test_head_dims(engine: Any, d: int, dv: int) -> None:
    q, k, v = randoms((1, 5, 4, d), (1, 6, 2, d), (1, 6, 2, dv))
    args = ForwardArgs(q=q, k=k, v=v, softmax_scale=d**-0.5, causal=True, window_right=0)
    assert same(engine, args)[0].shape == (1, 5, 4, dv)


@ENGINES
def test_results_share_no_memory_with_the_inputs(engine: Any) -> None:
    args = call((1, 3, 2, 8), (1, 3, 2, 8))
    first, second = engine(args)[0], engine(args)[0]
    owned = {tensor.untyped_storage().data_ptr() for tensor in (args.q, args.k, args.v, second)}
    assert first.untyped_storage().data_ptr() not in owned


@ENGINES
@pytest.mark.parametrize("shape", [(0, 3, 2, 8), (2, 0, 2, 8)], ids=["no batch", "no rows"])
def test_empty_calls(engine: Any, shape: tuple[int, ...]) -> None:
    out, lse = engine(call(shape, (shape[0], 4, 2, 8)))
    assert out.shape == shape and lse.shape == (shape[0], 2, shape[1])


def test_the_public_entry_takes_a_tensor_scale_of_rows() -> None:
    """max_seqlen_* may be a 0-d tensor."""
    args = call((5, 2, 8), (5, 2, 8), cu_seqlens_q=ints(0, 2, 5), cu_seqlens_k=ints(0, 2, 5))
    want = fallback.forward(args)[0]
    args.max_seqlen_q = args.max_seqlen_k = torch.tensor(3)
    assert torch.equal(fallback.forward(args)[0], want)


@ENGINES
@pytest.mark.parametrize("softcap", [0.0, 3.0], ids=["fused", "blocked"])
def test_ambient_settings_do_not_matter(engine: Any, softcap: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "lengths_stay_on_device", lambda _: engine is static.forward)
    args = call((2, 3, 4, 16), (2, 6, 2, 16), softcap=softcap, seqused_k=ints(2, 6))
    want = fallback.forward(args)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = fallback.forward(args)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            ambient = fallback.forward(args)
    finally:
        torch.set_default_dtype(before)
    with torch.inference_mode():
        inference = fallback.forward(args)
    for found in (autocast, ambient, inference):
        assert torch.equal(found[0], want[0]) and torch.equal(found[1], want[1])
