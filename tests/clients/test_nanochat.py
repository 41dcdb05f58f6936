"""nanochat's way of calling: training, an exact prefill cache, decoding step by step, mixed dtypes, its own tests."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import flash_attn3_sm121
from tests.clients.nanochat import GPT, Cache, Config
from tests.fakes.shapes import plain

CONFIG = Config()
# nanochat holds `get_kernel(...).flash_attn_interface`; this is what it gets from us.
FLASH = flash_attn3_sm121.flash_attn_interface


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(3)
    return GPT(CONFIG, FLASH).eval()


def decoded(model: GPT, tokens: Tensor, *, prefill: int, dtype: torch.dtype, chunk: int = 1) -> Tensor:
    """The logits of every position: a prefill, then steps of `chunk` tokens into the cache."""
    cache = Cache(model.config, tokens.shape[0], tokens.shape[1], dtype)
    pieces = [model(tokens[:, :prefill], cache)]
    for start in range(prefill, tokens.shape[1], chunk):
        pieces.append(model(tokens[:, start : start + chunk], cache))
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize(("prefill", "chunk"), [(1, 1), (7, 1), (12, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["cache-fp32", "cache-bf16"])
def test_stepwise_decoding_equals_the_full_forward(model: GPT, prefill: int, chunk: int, dtype: torch.dtype) -> None:
    tokens = torch.randint(CONFIG.vocabulary, (2, 32))
    with torch.inference_mode():
        full = model(tokens)
        steps = decoded(model, tokens, prefill=prefill, dtype=dtype, chunk=chunk)
    assert steps.dtype == torch.float32  # a fp32 model on a bf16 cache answers in fp32
    exact = dtype == torch.float32
    torch.testing.assert_close(steps, full, atol=1e-5 if exact else 5e-2, rtol=1e-4 if exact else 5e-2)


def test_rows_of_different_length_decode_as_if_alone(model: GPT) -> None:
    """Where nanochat's own fallback looks at the first row's length only."""
    lengths = (3, 9, 6)
    prompts = [torch.randint(CONFIG.vocabulary, (1, n)) for n in lengths]
    nexts = torch.randint(CONFIG.vocabulary, (3, 4))
    with torch.inference_mode():
        together = Cache(CONFIG, 3, 16, torch.float32)
        for row, prompt in enumerate(prompts):
            alone = Cache(CONFIG, 1, prompt.shape[1], torch.float32)  # exactly as many slots as tokens
            model(prompt, alone)
            together.k[:, row, : prompt.shape[1]] = alone.k[:, 0]
            together.v[:, row, : prompt.shape[1]] = alone.v[:, 0]
        together.lengths = torch.tensor(lengths, dtype=torch.int32)
        found = torch.cat([model(nexts[:, i : i + 1], together) for i in range(4)], dim=1)
        for row, prompt in enumerate(prompts):
            full = model(torch.cat((prompt, nexts[row : row + 1]), dim=1))
            torch.testing.assert_close(found[row], full[0, -4:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_training_step_has_the_gradients_of_plain_attention(compiled: bool) -> None:
    class Plain:
        @staticmethod
        def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window_size: tuple[int, int]) -> Tensor:
            return plain(q, k, v, causal=causal, window=window_size).to(q.dtype)

    torch.manual_seed(5)
    mine = GPT(CONFIG, FLASH)
    right = GPT(CONFIG, Plain)
    right.load_state_dict(mine.state_dict())
    tokens = torch.randint(CONFIG.vocabulary, (2, 33))
    torch._dynamo.reset()
    forward = torch.compile(mine, dynamic=False, fullgraph=True, backend="aot_eager") if compiled else mine
    for network, call in ((mine, forward), (right, right)):
        logits = call(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        assert network.embed.weight.grad is not None
    for (name, a), b in zip(mine.named_parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


# -- the cases of nanochat HEAD's comparison of FA3 with SDPA: head dims 16 and 32, GQA, T=64, tolerance 1e-2 and 5e-2


def through_sdpa(q: Tensor, k: Tensor, v: Tensor, window: int = -1) -> Tensor:
    t, s = q.shape[1], k.shape[1]
    row, column = torch.arange(t)[:, None] + s - t, torch.arange(s)[None, :]
    mask = (column <= row) & ((column >= row - window) if window >= 0 else True)
    turned = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*turned, attn_mask=mask, enable_gqa=True).transpose(1, 2)


@pytest.mark.parametrize("head_dim", [16, 32])
@pytest.mark.parametrize("heads_kv", [4, 2, 1])
@pytest.mark.parametrize("window", [-1, 8, 32])
def test_matches_sdpa_in_bf16(head_dim: int, heads_kv: int, window: int) -> None:
    torch.manual_seed(11)
    shapes = ((2, 64, 4, head_dim), (2, 64, heads_kv, head_dim), (2, 64, heads_kv, head_dim))
    mine = [torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    other = [x.detach().clone().requires_grad_() for x in mine]
    out = FLASH.flash_attn_func(*mine, causal=True, window_size=(window, 0))
    expected = through_sdpa(*other, window)
    torch.testing.assert_close(out, expected, atol=1e-2, rtol=1e-2)
    out.sum().backward()
    expected.sum().backward()
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=5e-2, rtol=5e-2)


def test_sliding_decode_matches_sdpa_in_bf16() -> None:
    torch.manual_seed(12)
    k, v = (torch.randn(2, 64, 2, 32, dtype=torch.bfloat16) for _ in range(2))
    caches = [torch.zeros_like(k), torch.zeros_like(v)]
    for cache, whole in zip(caches, (k, v), strict=True):
        cache[:, :40] = whole[:, :40]
    lengths = torch.full((2,), 40, dtype=torch.int32)
    for step in range(40, 48):
        q = torch.randn(2, 1, 4, 32, dtype=torch.bfloat16)
        new = (k[:, step : step + 1], v[:, step : step + 1])
        out = FLASH.flash_attn_with_kvcache(
            q, *caches, k=new[0], v=new[1], cache_seqlens=lengths, causal=True, window_size=(8, 0)
        )
        expected = through_sdpa(q, k[:, : step + 1], v[:, : step + 1], 8)
        torch.testing.assert_close(out, expected, atol=1e-2, rtol=1e-2)
        lengths += 1
    assert torch.equal(caches[0][:, :48], k[:, :48])
