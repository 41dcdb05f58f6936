"""Block masks: exact at block level, O(T) to build, cached by shape and bounded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from flash_attn3_sm121.flex import backend
from flash_attn3_sm121.flex.blocks import BLOCK, MaskCache, block_mask, mask_bytes
from flash_attn3_sm121.flex.ranges import MaskRule, dense_ranges, packed_ranges
from tests.flex.reference import RULES, Rule, args_of, keep

CPU = torch.device("cpu")


@pytest.mark.parametrize("rows,keys", [(1, 1), (128, 128), (300, 300), (130, 700), (520, 260)])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_intervals_and_blocks_agree_with_the_explicit_mask(rule: Rule, rows: int, keys: int) -> None:
    mask_rule = MaskRule(window_left=rule.left, window_right=rule.right, chunk=rule.chunk)
    ranges = dense_ranges(rows, keys, rule=mask_rule, device=CPU)
    kept = keep(rows, keys, rule)
    at = torch.arange(keys)
    assert torch.equal((at >= ranges.lo[:, None]) & (at < ranges.hi[:, None]), kept)
    mask = block_mask(ranges, keys)
    want = create_block_mask(lambda b, h, q, k: kept[q, k], None, None, rows, keys, device="cpu", BLOCK_SIZE=BLOCK)
    # Ours may keep a block that holds nothing (its mask drops it), never miss one, and calls no cut block whole.
    ours, torchs = mask.to_dense().bool(), want.to_dense().bool()
    assert bool((ours | ~torchs).all())
    whole_q, whole_k = rows // BLOCK, keys // BLOCK
    for i in range(whole_q):
        count = int(mask.full_kv_num_blocks[0, 0, i])
        for j in mask.full_kv_indices[0, 0, i, :count].tolist():
            assert j < whole_k
            assert bool(kept[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK].all())


def test_a_window_keeps_few_blocks() -> None:
    ranges = dense_ranges(16384, 16384, rule=MaskRule(window_left=1024, window_right=0), device=CPU)
    mask = block_mask(ranges, 16384)
    kept = int(mask.kv_num_blocks.sum()) + int(mask.full_kv_num_blocks.sum())
    assert kept <= 128 * 10  # nine blocks a row of tiles, of 128
    assert int(mask.full_kv_num_blocks.sum()) >= 128 * 6


def test_packed_blocks_stay_within_their_sequences() -> None:
    cu = torch.arange(0, 17, dtype=torch.int32) * 512
    ranges = packed_ranges(8192, rule=MaskRule(window_right=0), cu_seqlens_q=cu, cu_seqlens_k=cu)
    mask = block_mask(ranges, 8192)
    assert int(mask.kv_num_blocks.sum()) == 64  # the diagonal
    assert int(mask.full_kv_num_blocks.sum()) == 16 * (0 + 1 + 2 + 3)


def test_one_mask_for_one_shape(unfused: object) -> None:
    q = torch.randn(2, 200, 2, 32)
    for _ in range(3):
        backend.forward(args_of(q, q, q, Rule(left=20, right=0)), run=unfused)  # type: ignore[arg-type]
    assert (backend.MASKS.misses, backend.MASKS.hits) == (1, 2)
    backend.forward(args_of(q[:1], q[:1], q[:1], Rule(left=20, right=0)), run=unfused)  # type: ignore[arg-type]
    assert backend.MASKS.misses == 1  # the batch shares it
    backend.forward(args_of(q, q, q, Rule(left=21, right=0)), run=unfused)  # type: ignore[arg-type]
    assert backend.MASKS.misses == 2


def test_packed_masks_are_told_apart_by_values_not_by_the_tensor(unfused: object) -> None:
    q = torch.randn(64, 2, 32)
    cu = torch.tensor([0, 16, 64], dtype=torch.int32)
    first, _ = backend.forward(args_of(q, q, q, Rule(), cu_seqlens_q=cu, cu_seqlens_k=cu), run=unfused)  # type: ignore[arg-type]
    cu.numpy()[1] = 48  # behind torch's back
    second, _ = backend.forward(args_of(q, q, q, Rule(), cu_seqlens_q=cu, cu_seqlens_k=cu), run=unfused)  # type: ignore[arg-type]
    assert not torch.allclose(first, second)


def test_the_cache_is_bounded_in_number_and_bytes() -> None:
    def make(n: int) -> object:
        return block_mask(dense_ranges(n, n, rule=MaskRule(window_right=0), device=CPU), n)

    cache = MaskCache(entries=3)
    for n in (128, 256, 384, 512):
        cache.get(n, lambda n=n: make(n))
    cache.get(256, lambda: make(256))
    assert len(cache) == 3 and cache.hits == 1
    small = MaskCache(entries=99, max_bytes=mask_bytes(make(512)) + 8)  # type: ignore[arg-type]
    for n in (128, 256, 512):
        small.get(n, lambda n=n: make(n))
    assert len(small) == 1 and small.bytes <= mask_bytes(make(512)) + 8  # type: ignore[arg-type]


def test_a_mask_is_used_again_on_its_own_stream_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another stream would read it before it is made; in a graph's capture nothing is computed."""
    stream, capturing = SimpleNamespace(cuda_stream=0), False
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    gpu = torch.device("cuda", 0)
    first = backend._key("parts", gpu, None)
    assert first is not None and backend._key("parts", gpu, None) == first
    assert backend._key("parts", torch.device("cuda", 1), None) != first
    stream.cuda_stream = 7
    assert backend._key("parts", gpu, None) not in (None, first)
    capturing = True
    assert backend._key("parts", gpu, None) is None
