"""The hub's interface for vLLM: its own arguments by name, each meant, refused, or without an effect on the result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flash_attn3_sm121.errors import CallError
from flash_attn3_sm121.hub import sgl_interface, vllm_interface
from tests.fakes.shapes import dense, fa3, packed

INT = torch.int32


def paged() -> tuple[Tensor, Tensor, dict[str, Any]]:
    """q, pages, and the rest of a decode call by vLLM's names."""
    rest = {
        "cu_seqlens_q": torch.tensor([0, 1, 3], dtype=INT),
        "max_seqlen_q": 2,
        "seqused_k": torch.tensor([7, 3], dtype=INT),
        "max_seqlen_k": 8,
        "block_table": torch.tensor([[5, 1], [0, 3]], dtype=INT),
        "causal": True,
    }
    return torch.randn(3, 4, 16), torch.randn(2, 6, 4, 2, 16), rest


@pytest.mark.parametrize("window", [None, [3, 0]])
def test_a_paged_call_of_vllms(window: list[int] | None) -> None:
    q, pages, rest = paged()
    sinks, out = torch.randn(4), torch.full_like(q, torch.nan)
    found = vllm_interface.flash_attn_varlen_func(
        q, *pages, **rest, out=out, s_aux=sinks, window_size=window, softcap=9.0, fa_version=3, num_splits=0,
        alibi_slopes=None, scheduler_metadata=None,
    )  # fmt: skip
    right, lse, *_ = fa3.flash_attn_with_kvcache(
        q, *pages, cache_seqlens=rest["seqused_k"], page_table=rest["block_table"], cu_seqlens_q=rest["cu_seqlens_q"],
        max_seqlen_q=2, causal=True, s_aux=sinks, window_size=window or (-1, -1), softcap=9.0, return_softmax_lse=True,
    )  # fmt: skip
    assert found is out or found.data_ptr() == out.data_ptr()
    torch.testing.assert_close(out, right)
    pair = vllm_interface.flash_attn_varlen_func(
        q, *pages, **rest, s_aux=sinks, window_size=window, softcap=9.0, return_softmax_lse=True
    )
    torch.testing.assert_close(pair, (right, lse))


def test_what_transformers_gives_both_functions_of_the_vllm_flavour() -> None:
    """It looks for `dropout_p` among the arguments of flash_attn_varlen_func, and gives it to flash_attn_func too."""
    q, k, v = dense()
    right = fa3.flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    given: dict[str, Any] = {"causal": True, "softmax_scale": None, "deterministic": False}
    torch.testing.assert_close(vllm_interface.flash_attn_func(q, k, v, dropout_p=0.0, **given), right)
    with pytest.raises(CallError, match=r"dropout_p is not supported here: found 0\.1"):
        vllm_interface.flash_attn_func(q, k, v, dropout_p=0.1, **given)


def test_who_gets_a_pair() -> None:
    q, k, v, cu = packed()
    given = {"cu_seqlens_q": cu, "cu_seqlens_k": cu, "max_seqlen_q": 7, "max_seqlen_k": 7}
    right = fa3.flash_attn_varlen_func(q, k, v, cu, cu, 7, 7, return_attn_probs=True)
    for transformers_or_lse in ({}, {"return_softmax_lse": True}, {"fa_version": 2, "return_softmax_lse": True}):
        torch.testing.assert_close(
            vllm_interface.flash_attn_varlen_func(q, k, v, **given, **transformers_or_lse), right
        )
    for vllm in ({"fa_version": 2}, {"return_softmax_lse": False}, {"fa_version": 3, "dropout_p": 0.0}):
        torch.testing.assert_close(vllm_interface.flash_attn_varlen_func(q, k, v, **given, **vllm), right[0])


def test_latent_attention_counts_q_v_as_vllm_does() -> None:
    q, pages, rest = paged()
    values, qv = torch.randn(6, 4, 2, 32), torch.randn(3, 4, 32)
    found = vllm_interface.flash_attn_varlen_func(q, pages[0], values, **rest, q_v=qv, fa_version=3)
    right = fa3.flash_attn_with_kvcache(
        q, pages[0], values, qv=qv, cache_seqlens=rest["seqused_k"], page_table=rest["block_table"],
        cu_seqlens_q=rest["cu_seqlens_q"], max_seqlen_q=2, causal=True, softmax_scale=0.25,
    )  # fmt: skip
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize(
    "argument",
    [
        {"dropout_p": 0.1}, {"alibi_slopes": torch.ones(4)}, {"output_scale": 1.0}, {"mask_mod": print},
        {"block_sparse_tensors": ()}, {"aux_tensors": []}, {"dynamic_causal": torch.ones(1)}, {"cp_world_size": 2},
    ],
    ids=lambda argument: next(iter(argument)),
)  # fmt: skip
def test_what_is_not_supported_is_refused(argument: dict[str, Any]) -> None:
    q, k, v, cu = packed()
    with pytest.raises(CallError, match="not supported"):
        vllm_interface.flash_attn_varlen_func(q, k, v, cu, cu, 7, 7, **argument)


def test_scores_of_only_qv_have_the_scale_of_the_values() -> None:
    low = torch.float8_e4m3fn
    values, qv = torch.randn(2, 8, 1, 32).to(low), torch.randn(2, 1, 4, 32).bfloat16()
    scale, lengths = torch.tensor([[0.5], [2.0]]), torch.tensor([8, 5], dtype=INT)
    given: dict[str, Any] = {"cache_seqlens": lengths, "softmax_scale": 0.1}
    for k_descale in (None, scale * 9):
        found = sgl_interface.flash_attn_with_kvcache(
            qv[..., :0], None, values, qv=qv, k_descale=k_descale, v_descale=scale, only_qv=True, **given
        )
        plain = (values.float() * scale[:, None, :, None]).bfloat16()
        torch.testing.assert_close(found, fa3.flash_attn_with_kvcache(qv, plain, plain, **given), atol=2e-2, rtol=2e-2)


def test_only_qv_says_what_it_needs() -> None:
    q, _, v = dense(sq=1)
    with pytest.raises(CallError, match="needs qv and softmax_scale and no new keys, found qv not given"):
        sgl_interface.flash_attn_with_kvcache(q, None, v, only_qv=True)
    with pytest.raises(TypeError, match="k_cache must be"):
        sgl_interface.flash_attn_with_kvcache(q, None, v)
