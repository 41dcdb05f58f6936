"""Bad input: upstream's recognisable words, and nothing written before the arguments are checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from flash_attn3_sm121.api.private import _flash_attn_backward, _flash_attn_forward
from flash_attn3_sm121.errors import CallError
from tests.fakes.shapes import dense, fa3, packed

INT, FP8 = torch.int32, torch.float8_e4m3fn
CACHE = torch.zeros(2, 16, 2, 16)
SCALE = torch.ones(2, 2)
Bad = Callable[[], Any]


def cu(*values: int, dtype: torch.dtype = INT) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def call(**change: Any) -> Any:
    q, k, v = dense()
    return fa3.flash_attn_func(**{"q": q, "k": k, "v": v, **change})


def varlen(**change: Any) -> Any:
    q, k, v, lengths = packed()
    given = {
        "q": q,
        "k": k,
        "v": v,
        "cu_seqlens_q": lengths,
        "cu_seqlens_k": lengths,
        "max_seqlen_q": 7,
        "max_seqlen_k": 7,
    }
    return fa3.flash_attn_varlen_func(**{**given, **change})


def cached(**change: Any) -> Any:
    q, k, v = dense(sq=1, sk=1)
    kc, vc = torch.zeros(2, 16, 2, 16), torch.zeros(2, 16, 2, 16)
    given = {"q": q, "k_cache": kc, "v_cache": vc, "k": k, "v": v, "cache_seqlens": cu(0, 3), "causal": True}
    return fa3.flash_attn_with_kvcache(**{**given, **change})


def gradients(**into: Any) -> Any:
    q, k, v = dense()
    out, lse = fa3.flash_attn_func(q, k, v, return_attn_probs=True)
    return _flash_attn_backward(out, q, k, v, out, lse, **into)


def fp8(**change: Any) -> Any:
    """Decoding from a cache in fp8; `change` may be a type."""
    given = {**dict(zip("qkv", dense(sq=1, sk=1), strict=True)), "k_cache": CACHE, "v_cache": CACHE}
    kinds = {name: change.pop(name, FP8) for name in given if isinstance(change.get(name, FP8), torch.dtype)}
    return cached(**{name: given[name].to(kind) for name, kind in kinds.items()}, **change)


def rotary(dim: int = 16, rows: int = 32, **kind: Any) -> dict[str, Any]:
    return {"rotary_cos": torch.ones(rows, dim // 2, **kind), "rotary_sin": torch.zeros(rows, dim // 2, **kind)}


CASES: dict[str, tuple[Bad, str]] = {
    "integer tensors": (lambda: call(q=torch.ones(2, 5, 4, 16, dtype=INT)), "only supports fp16, bf16, and fp8_e4m3"),
    "e5m2": (lambda: call(q=torch.ones(2, 5, 4, 16).to(torch.float8_e5m2)), "only supports fp16, bf16, and fp8_e4m3"),
    "k of another dtype": (lambda: call(k=dense()[1].half()), "must have the same dtype"),
    "v of another dtype": (lambda: call(v=dense()[2].half()), "must have the same dtype"),
    "fp8 queries, other cache": (
        lambda: fp8(k_cache=torch.bfloat16, v_cache=torch.bfloat16),
        r"q is torch\.float8_e4m3fn, k is torch\.bfloat16(.|\n)*other keys take no fp8 queries",
    ),
    "other queries, fp8 cache": (
        lambda: fp8(q=torch.float32),
        r"q is torch\.float32, k is torch\.float8_e4m3fn(.|\n)*take queries in fp8, bf16 or fp16",
    ),
    "descales by query heads": (
        lambda: fp8(k_descale=torch.ones(2, 4), v_descale=SCALE),
        r"k_descale must have shape \(2, 2\) = \(batch_size, num_heads_k\), found \(2, 4\)",
    ),
    "one number as a descale": (lambda: fp8(q_descale=torch.tensor(1.0)), r"q_descale must have shape \(2, 2\)"),
    "descales in fp64": (
        lambda: fp8(k_descale=SCALE, v_descale=SCALE.double()),
        r"v_descale must have dtype torch\.float32",
    ),
    "k_descale alone": (lambda: fp8(k_descale=SCALE), "v_descale is missing and would count as 1"),
    "v_descale alone": (lambda: fp8(q_descale=SCALE, v_descale=SCALE), "k_descale is missing and would count as 1"),
    "dv 520": (lambda: call(v=torch.randn(2, 7, 2, 520)), "head_size_v at most 512, found 520"),
    "k elsewhere": (lambda: call(k=dense(device="meta")[1]), "k must be on"),
    "three dimensions": (lambda: call(q=torch.randn(5, 4, 16)), r"q must have shape \(batch_size"),
    "other batch": (
        lambda: call(k=torch.randn(3, 7, 2, 16), v=torch.randn(3, 7, 2, 16)),
        "batch_size must be equal to batch_size_k",
    ),
    "other head dim": (lambda: call(k=torch.randn(2, 7, 2, 24)), r"k must have shape \("),
    "k and v differ": (lambda: call(v=torch.randn(2, 6, 2, 16)), r"v must have shape \("),
    "head dim 20": (lambda: call(**dict(zip("qkv", dense(d=20), strict=True))), "head_size should be a multiple of 8"),
    "head dim 264": (lambda: call(**dict(zip("qkv", dense(d=264), strict=True))), "head dimension at most 256"),
    "odd groups": (
        lambda: call(**dict(zip("qkv", dense(h=3), strict=True))),
        "Number of heads in key/value must divide",
    ),
    "too many splits": (lambda: call(num_splits=257), "num_splits > 256 not supported"),
    "scale below 0": (lambda: call(softmax_scale=-0.5, causal=True), "softmax_scale must be 0 or more, found -0.5"),
    "scale below 0 in an op": (
        lambda: torch.ops.flash_attn_3.fwd(*dense(), softmax_scale=-0.5),
        "softmax_scale must be 0 or more, found -0.5",
    ),
    "dq of another batch": (
        lambda: gradients(dq=torch.zeros(3, 2, 5, 4, 16)[:, 0]),
        r"dq must have shape \(2, 5, 4, 16\) = \(the shape of q\), found \(3, 5, 4, 16\)",
    ),
    "dk of another dtype": (lambda: gradients(dk=torch.zeros(2, 7, 2, 16, dtype=INT)), "dk must have the same dtype"),
    "fewer than no heads": (
        lambda: fa3.flash_attn_qkvpacked_func(torch.randn(2, 5, 8, 16), num_heads_q=-2),
        "qkv holds 8 heads, which is not num_heads_q",
    ),
    "two scales": (lambda: call(softmax_scale=torch.ones(2)), "softmax_scale must be a number"),
    "two softcaps": (lambda: call(softcap=torch.ones(2)), "softcap must be a number"),
    "half a chunk": (lambda: call(attention_chunk=2.5), "attention_chunk must be a whole number, found 2.5"),
    "two bounds": (lambda: varlen(max_seqlen_q=cu(7, 7)), "max_seqlen_k must be a whole number"),
    "an endless window": (lambda: call(window_size=(float("inf"), 0)), "window_size must be two numbers"),
    "a window of tensors": (lambda: call(window_size=(cu(1, 2), 0)), "window_size must be two numbers"),
    "negative chunk": (lambda: call(attention_chunk=-1), "attention_chunk must be 0"),
    "sinks of another length": (lambda: call(s_aux=torch.zeros(3)), r"s_aux must have shape \("),
    "qv of another shape": (lambda: call(qv=torch.randn(2, 5, 4, 8)), r"qv must have shape \("),
    "no max_seqlen_q": (lambda: varlen(max_seqlen_q=None), "max_seqlen_q must be provided if cu_seqlens_q is provided"),
    "no max_seqlen_k": (lambda: varlen(max_seqlen_k=None), "max_seqlen_k must be provided if cu_seqlens_k is provided"),
    "int64 lengths": (lambda: varlen(cu_seqlens_q=cu(0, 3, 3, 10, dtype=torch.int64)), "must have dtype torch.int32"),
    "other number of lengths": (lambda: varlen(cu_seqlens_k=cu(0, 10)), r"cu_seqlens_k must have shape \("),
    "seqused of another length": (lambda: varlen(seqused_k=cu(1, 1)), r"seqused_k must have shape \("),
    "k without v": (lambda: cached(v=None), "If k_new is supplied, v_new must also be passed in"),
    "v without k": (lambda: cached(k=None), "If v_new is supplied, k_new must also be passed in"),
    "k without cache_seqlens": (lambda: cached(cache_seqlens=None), "If k_new is supplied, seqlens_k must also"),
    "rotary without k": (lambda: cached(k=None, v=None, **rotary()), "If rotary cos/sin are provided, new key"),
    "rotary dim 24": (lambda: cached(**rotary(24)), "rotary_dim must be <= headdim"),
    "rotary dim 8": (lambda: cached(**rotary(8)), "divisible by 16"),
    "rotary dtype": (lambda: cached(**rotary(dtype=torch.float16)), "rotary_cos must have the same dtype as query"),
    "cos without sin": (lambda: cached(rotary_cos=torch.ones(32, 8)), "rotary sin must also be provided"),
    "int64 page table": (lambda: cached(page_table=torch.zeros(2, 3, dtype=torch.int64)), "page_table must have dtype"),
    "page table rows": (
        lambda: cached(page_table=torch.zeros(3, 3, dtype=INT)),
        "batch_size must be equal to batch_size_k",
    ),
    "strided cache": (
        lambda: cached(k_cache=torch.zeros(2, 16, 16, 2).mT),
        "k_cache must have contiguous last dimension",
    ),
    "known overflow": (lambda: cached(cache_seqlens=16), "KV cache overflow: 16 \\+ 1"),
    "negative length": (lambda: cached(cache_seqlens=-1), "cache_seqlens must not be negative"),
    "five dimensions": (lambda: fa3.flash_attn_qkvpacked_func(torch.randn(2, 5, 2, 4, 16)), "qkv must have shape"),
    "four without heads": (lambda: fa3.flash_attn_qkvpacked_func(torch.randn(2, 5, 8, 16)), "num_heads_q"),
    "uneven heads": (
        lambda: fa3.flash_attn_qkvpacked_func(torch.randn(2, 5, 8, 16), num_heads_q=5),
        "qkv holds 8 heads",
    ),
    "bf16 partials": (
        lambda: fa3.flash_attn_combine(torch.zeros(2, 1, 3, 2, 8).bfloat16(), torch.zeros(2, 1, 3, 2)),
        "only support fp32",
    ),
    "lse of other shape": (
        lambda: fa3.flash_attn_combine(torch.zeros(2, 1, 3, 2, 8), torch.zeros(2, 1, 2, 3)),
        r"lse_partial must have shape \(",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_message_keeps_upstreams_words(name: str) -> None:
    bad, words = CASES[name]
    with pytest.raises(CallError, match=words) as caught:
        bad()
    assert isinstance(caught.value, RuntimeError)  # what upstream's checks raise


def test_not_a_tensor() -> None:
    with pytest.raises(TypeError, match=r"k must be a torch\.Tensor, found list"):
        call(k=[1, 2])
    with pytest.raises(TypeError, match=r"q must be a torch\.Tensor, found list"):
        _flash_attn_forward([1], *dense()[1:])
    with pytest.raises(TypeError, match=r"cu_seqlens_q must be a torch\.Tensor, found int"):
        cached(cache_seqlens=2, cu_seqlens_q=3)
    with pytest.raises(TypeError, match=r"dv must be a torch\.Tensor, found list"):
        gradients(dv=[1])
    with pytest.raises(TypeError, match=r"out must be a torch\.Tensor, found list"):
        fa3.flash_attn_combine(torch.zeros(2, 1, 3, 2, 8), torch.zeros(2, 1, 3, 2), [1])


def test_fp8_gradient_is_refused() -> None:
    q, k, v = (x.to(torch.float8_e4m3fn) for x in dense(d=16))
    lse = torch.zeros(2, 4, 5)
    with pytest.raises(CallError, match="only support fp16 and bf16 data type"):
        torch.ops.flash_attn_3.bwd(q, q, k, v, q, lse)


BAD_APPENDS: dict[str, dict[str, Any]] = {
    "overflow in one row": {"cache_seqlens": cu(0, 16)},
    "overflow through pages": {"page_table": torch.zeros(2, 1, dtype=INT), "cache_seqlens": cu(0, 16)},
    "rotary too wide": {**rotary(32)},
    "lengths of another dtype": {"cache_seqlens": cu(0, 3, dtype=torch.int64)},
    "heads": {"v": torch.randn(2, 1, 4, 16)},
    "fp8 queries": {"q": torch.zeros(2, 1, 4, 16).to(FP8)},
    "fp8 tokens": {"k": torch.zeros(2, 1, 2, 16).to(FP8), "v": torch.zeros(2, 1, 2, 16).to(FP8)},
}


@pytest.mark.parametrize("name", BAD_APPENDS)
def test_nothing_is_written_into_a_cache_before_the_checks(name: str) -> None:
    kc, vc = torch.full((2, 16, 2, 16), 7.0), torch.full((2, 16, 2, 16), 7.0)
    with pytest.raises((CallError, ValueError)):
        cached(k_cache=kc, v_cache=vc, **BAD_APPENDS[name])
    assert (kc == 7).all()
    assert (vc == 7).all()


@pytest.mark.parametrize("name", [name for name in CASES if "descale" in name])
def test_nothing_is_written_into_an_fp8_cache_either(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[torch.Tensor] = []
    real = fa3.flash_attn_with_kvcache

    def watched(**given: Any) -> Any:
        kept.extend((given["k_cache"], given["v_cache"]))
        return real(**given)

    monkeypatch.setattr(fa3, "flash_attn_with_kvcache", watched)
    with pytest.raises(CallError):
        CASES[name][0]()
    assert len(kept) == 2 and all((cache.float() == 0).all() for cache in kept)


def test_the_second_call_of_a_class_is_checked_as_well() -> None:
    """Decisions are remembered, shapes that passed are remembered, and a bad shape never passes for that."""
    call()
    call()
    with pytest.raises(CallError, match="batch_size must be equal"):
        call(k=torch.randn(3, 7, 2, 16), v=torch.randn(3, 7, 2, 16))
    with pytest.raises(CallError, match="k must be on"):
        call(k=dense(device="meta")[1])
