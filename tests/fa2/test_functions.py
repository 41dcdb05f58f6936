"""FlashAttention-2's functions: its meaning where FlashAttention-3 has another, against plain arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flash_attn3_sm121.errors import CallError
from flash_attn3_sm121.fa2 import interface as fa2
from flash_attn3_sm121.fa2 import raw
from tests.fakes.shapes import plain

LENGTHS = (5, 9)
CU = torch.tensor([0, 5, 14], dtype=torch.int32)


def dense(sq: int = 6, sk: int = 6, heads_kv: int = 2) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((2, sq, 4, 16), (2, sk, heads_kv, 16), (2, sk, heads_kv, 16))
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4, check_dtype=False)


@pytest.mark.parametrize(("sq", "sk"), [(6, 6), (2, 5), (5, 2)])
def test_positional_order_and_a_causal_mask_that_ends_at_the_last_key(sq: int, sk: int) -> None:
    q, k, v = dense(sq, sk)
    out = fa2.flash_attn_func(q, k, v, 0.0, 0.5, True)
    expected = plain(q * 0.5 * 16**0.5, k, v, causal=True)
    same(out, expected)
    dout = torch.randn_like(out)
    same(torch.autograd.grad(out, (q, k, v), dout), torch.autograd.grad(expected, (q, k, v), dout.to(expected)))


def test_probabilities_are_a_third_result_and_empty() -> None:
    q, k, v = dense()
    out, lse, probabilities = fa2.flash_attn_func(q, k, v, return_attn_probs=True)
    assert (lse.shape, lse.dtype, probabilities.numel()) == ((2, 4, 6), torch.float32, 0)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k.repeat_interleave(2, dim=2)) / 4
    same(lse, scores.logsumexp(-1))
    assert torch.equal(out, fa2.flash_attn_func(q, k, v))


def test_packed_and_stacked_forms_are_one_function() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(2, 7, 3, 4, 16)
    q, k, v = qkv.unbind(2)
    options: dict[str, Any] = {"causal": True, "window_size": (3, 0), "softcap": 5.0, "deterministic": True}
    right = fa2.flash_attn_func(q, k, v, **options)
    assert torch.equal(fa2.flash_attn_qkvpacked_func(qkv, **options), right)
    assert torch.equal(fa2.flash_attn_kvpacked_func(q, qkv[:, :, 1:], **options), right)
    rows = qkv.flatten(0, 1)
    cu = torch.tensor([0, 7, 14], dtype=torch.int32)
    same(fa2.flash_attn_varlen_qkvpacked_func(rows, cu, 7, **options), right.flatten(0, 1))
    same(fa2.flash_attn_varlen_kvpacked_func(rows[:, 0], rows[:, 1:], cu, cu, 7, 7, **options), right.flatten(0, 1))


def test_a_packed_lse_has_no_padding() -> None:
    q, k, v = (torch.randn(14, 4, 16) for _ in range(3))
    out, lse, probabilities = fa2.flash_attn_varlen_func(q, k, v, CU, CU, 9, 9, return_attn_probs=True)
    assert (out.shape, lse.shape, probabilities.numel()) == ((14, 4, 16), (4, 14), 0)


def paged(k: Tensor, v: Tensor, table: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Pages that hold the packed sequences of CU where the table says."""
    pages = torch.zeros(2, int(table.max()) + 1, size, *k.shape[1:])
    for row, pieces in enumerate(zip(k.split(LENGTHS), v.split(LENGTHS), strict=True)):
        for which, tokens in enumerate(pieces):
            for number, page in enumerate(tokens.split(size)):
                pages[which, table[row, number], : page.shape[0]] = page
    return pages[0], pages[1]


def test_pages_are_called_block_table() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(14, 2, 16) for _ in range(3))
    table = torch.tensor([[3, 0, 0], [1, 4, 2]], dtype=torch.int32)
    pages = paged(k, v, table, 4)
    right = fa2.flash_attn_varlen_func(q, k, v, CU, CU, 9, 9, causal=True, return_attn_probs=True)
    found = fa2.flash_attn_varlen_func(q, *pages, CU, CU, 9, 9, causal=True, return_attn_probs=True, block_table=table)
    same(found, right)
    last = CU[1:].long() - 1
    decoded = fa2.flash_attn_with_kvcache(
        q[last][:, None], *pages, cache_seqlens=CU.diff(), block_table=table, causal=True, return_softmax_lse=True
    )
    same(decoded, (right[0][last][:, None], right[1].T[last][..., None]))


def test_new_keys_go_into_the_cache_behind_the_lengths() -> None:
    torch.manual_seed(0)
    caches = [torch.randn(2, 16, 2, 16) for _ in range(2)]
    before = [cache.clone() for cache in caches]
    q, k, v = torch.randn(2, 1, 4, 16), torch.randn(2, 1, 2, 16), torch.randn(2, 1, 2, 16)
    out = fa2.flash_attn_with_kvcache(q, *caches, k, v, cache_seqlens=7, causal=True)
    assert all(torch.equal(cache[:, 7], new[:, 0]) for cache, new in zip(caches, (k, v), strict=True))
    assert all(torch.equal(cache[:, 8:], old[:, 8:]) for cache, old in zip(caches, before, strict=True))
    same(out, plain(q, caches[0][:, :8], caches[1][:, :8]))
    place = torch.empty_like(out)
    found = raw.fwd_kvcache(
        q, *caches, None, None, torch.tensor([8, 8], dtype=torch.int32), None, None, None, None, None, None, place,
        0.25, True, -1, -1, 0.0, True, 0,
    )  # fmt: skip
    assert found[0] is place and found[1].shape == (2, 4, 1)
    same(place, out)


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"dropout_p": 0.1}, "dropout_p is 0.1, expected 0"), ({"alibi_slopes": torch.ones(4)}, "has no ALiBi")],
    ids=["dropout", "alibi"],
)
def test_what_flash_attention_3_has_not_is_refused(asked: dict[str, Any], said: str) -> None:
    q, k, v = dense()
    calls = [
        lambda: fa2.flash_attn_func(q, k, v, **asked),
        lambda: fa2.flash_attn_varlen_func(q[0], k[0], v[0], CU, CU, 9, 9, **asked),
    ]
    if "alibi_slopes" in asked:
        calls.append(lambda: fa2.flash_attn_with_kvcache(q, k, v, **asked))
    for call in calls:
        with pytest.raises(CallError, match=said) as caught:
            call()
        assert caught.value.hint


CACHE = torch.zeros(2, 8, 2, 16)
MESSAGES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "list": (lambda: fa2.flash_attn_func([1.0], *dense()[1:]), TypeError, "q must be a torch.Tensor, found list"),  # type: ignore[arg-type]
    "sparse": (lambda: fa2.flash_attn_func(dense()[0].to_sparse(), *dense()[1:]), CallError, "torch.sparse_coo"),
    "packed list": (lambda: fa2.flash_attn_qkvpacked_func([1.0]), TypeError, "qkv must be a torch.Tensor, found list"),  # type: ignore[arg-type]
    "packed otherwise": (
        lambda: fa2.flash_attn_kvpacked_func(dense()[0], torch.zeros(2, 5, 3, 2, 16)), CallError, "at 2 of size 2",
    ),
    "softcap": (lambda: fa2.flash_attn_func(*dense(), softcap="1"), CallError, "softcap must be a number"),  # type: ignore[arg-type]
    "window": (
        lambda: fa2.flash_attn_with_kvcache(dense()[0], CACHE, CACHE, window_size=(1, 2, 3)), CallError,
        "window_size must be two numbers",
    ),
    "FA3's order": (lambda: fa2.flash_attn_func(*dense(), 0.25, True), CallError, "dropout_p is 0.25, expected 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", MESSAGES)
def test_the_message_names_what_was_passed(name: str) -> None:
    call, kind, words = MESSAGES[name]
    with pytest.raises(kind, match=words):
        call()


def test_a_scale_of_zero_is_meant_here_and_a_negative_softcap_is_none() -> None:
    q, k, v = dense()
    out = fa2.flash_attn_func(q, k, v, 0.0, 0.0)
    same(out, v.mean(1, keepdim=True).repeat_interleave(2, dim=2).expand_as(out))
    dq, dk, _ = torch.autograd.grad(out.square().sum(), (q, k, v))
    assert not dq.any() and not dk.any()
    assert torch.equal(fa2.flash_attn_func(q, k, v, softcap=-1.0), fa2.flash_attn_func(q, k, v))


def test_the_private_pair_gives_what_autograd_gives() -> None:
    q, k, v = dense()
    out = fa2.flash_attn_func(q, k, v, causal=True, window_size=(2, 0))
    dout = torch.randn_like(out)
    right = torch.autograd.grad(out, (q, k, v), dout)
    q, k, v = (x.detach() for x in (q, k, v))
    results = fa2._wrapped_flash_attn_forward(q, k, v, 0.0, 0.25, True, 2, 0, 0.0, None, False)
    assert len(results) == 4 and results[2].numel() == 0 and results[3].dtype == torch.int64
    same(results[0], out.detach())
    gradients = [torch.full_like(x, float("nan")) for x in (q, k, v)]
    fa2._flash_attn_backward(
        dout, q, k, v, *results[:2], *gradients, 0.0, 0.25, True, 2, 0, 0.0, None, False, rng_state=results[3]
    )
    same(tuple(gradients), right)
    made = raw.bwd(dout, q, k, v, *results[:2], None, None, None, None, 0.0, 0.25, True, 2, 0, 0.0, False, None, None)
    same(tuple(made[:3]), right)


def test_the_private_packed_pair_gives_what_autograd_gives() -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(14, 4, 16, requires_grad=True) for _ in range(3)]
    out = fa2.flash_attn_varlen_func(*leaves, CU, CU, 9, 9, causal=True)
    dout = torch.randn_like(out)
    right = torch.autograd.grad(out, leaves, dout)
    q, k, v = (x.detach() for x in leaves)
    found, lse, _, state = fa2._flash_attn_varlen_forward(q, k, v, CU, CU, 9, 9, 0.0, 0.25, True)
    same(found, out.detach())
    gradients = [torch.full_like(x, float("nan")) for x in (q, k, v)]
    fa2._wrapped_flash_attn_varlen_backward(
        dout, q, k, v, found, lse, *gradients, CU, CU, 9, 9, 0.0, 0.25, True, -1, -1, 0.0, None, True, state, True
    )
    same(tuple(gradients), right)


def test_tensors_that_are_turned_around_and_a_whole_graph() -> None:
    """ComfyUI's call: heads first, turned to tokens first, inside an op of its own; the result is turned back."""

    @torch.library.custom_op("fa2_test::flash", mutates_args=())
    def flash(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, causal: bool = False) -> Tensor:
        out: Tensor = fa2.flash_attn_func(q, k, v, dropout_p=dropout_p, causal=causal)
        return out

    @flash.register_fake
    def _(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, causal: bool = False) -> Tensor:
        return q.new_empty(q.shape)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        turned = (x.transpose(1, 2) for x in (q, k, v))
        return flash(*turned, dropout_p=0.0, causal=False).transpose(1, 2).flatten(2)

    q, k, v = (torch.randn(1, 4, 12, 16) for _ in range(3))
    expected = plain(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2).flatten(2)
    same(attention(q, k, v), expected)
    torch._dynamo.reset()
    same(torch.compile(attention, fullgraph=True, backend="aot_eager")(q, k, v), expected)
    straight = torch.compile(fa2.flash_attn_func, fullgraph=True, backend="aot_eager")
    turned = [x.transpose(1, 2).mT.contiguous().mT for x in (q, k, v)]  # not even the last dimension is contiguous
    same(straight(*turned), plain(*turned))
