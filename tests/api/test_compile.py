"""Compilers, exporters and modes: one graph, right numbers, and the strides that the fakes promised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from tests.fakes.shapes import dense, fa3, packed
from tests.inductor import needs_inductor

Loss = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


def dense_loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return fa3.flash_attn_func(q, k, v, causal=True, window_size=(3, 0)).square().sum()


def varlen_loss(q: Tensor, k: Tensor, v: Tensor, cu: Tensor) -> Tensor:
    return fa3.flash_attn_varlen_func(q, k, v, cu, cu, 7, 7, causal=True, window_size=(4, 0)).square().sum()


def same_gradients(loss: Loss, compiled: Loss, tensors: tuple[Tensor, ...], *rest: Tensor) -> None:
    found = torch.autograd.grad(compiled(*tensors, *rest), tensors)
    expected = torch.autograd.grad(loss(*tensors, *rest), tensors)
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, right)
        assert mine.stride() == right.stride()


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_dense_in_one_graph(dynamic: bool) -> None:
    compiled = torch.compile(dense_loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for length in (7, 9):
        same_gradients(dense_loss, compiled, dense(sq=5, sk=length, grad=True))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_varlen_in_one_graph(dynamic: bool) -> None:
    compiled = torch.compile(varlen_loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for lengths in ((3, 0, 7), (5, 6, 0)):
        *tensors, cu = packed(lengths, grad=True)
        same_gradients(varlen_loss, compiled, tuple(tensors), cu)


def test_dynamic_shapes_do_not_recompile() -> None:
    count = 0

    def counting(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        nonlocal count
        count += 1
        return graph.forward

    compiled = torch.compile(lambda q, k, v: fa3.flash_attn_func(q, k, v, causal=True), dynamic=True, backend=counting)
    for length in (5, 8, 11, 300):
        q, k, v = dense(sq=length, sk=length)
        torch.testing.assert_close(compiled(q, k, v), fa3.flash_attn_func(q, k, v, causal=True))
    assert count == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
@needs_inductor
def test_inductor_runs_it() -> None:
    compiled = torch.compile(dense_loss, fullgraph=True, dynamic=False)
    same_gradients(dense_loss, compiled, dense(grad=True))


def test_lengths_in_a_tensor_do_not_break_the_graph() -> None:
    q, k, v, cu = packed()
    length = torch.tensor(7, dtype=torch.int32)
    call = lambda m: fa3.flash_attn_varlen_func(q, k, v, cu, cu, m, m, causal=True)  # noqa: E731
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(length), call(7))


def test_appending_to_a_cache_in_one_graph() -> None:
    q, k, v = dense(sq=1, sk=1)
    lengths = torch.tensor([0, 4], dtype=torch.int32)

    def step(q: Tensor, kc: Tensor, vc: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
        return fa3.flash_attn_with_kvcache(q, kc, vc, k, v, cache_seqlens=lengths, causal=True, window_size=(8, 0))

    caches = [torch.randn(2, 16, 2, 16) for _ in range(2)]
    copies = [cache.clone() for cache in caches]
    expected = step(q, *caches, k, v, lengths)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(q, *copies, k, v, lengths)
    torch.testing.assert_close(found, expected)
    for mine, right in zip(copies, caches, strict=True):
        torch.testing.assert_close(mine, right)
    torch.testing.assert_close(caches[0][0, 0], k[0, 0])


def test_errors_reach_the_user_from_a_compiled_function() -> None:
    compiled = torch.compile(lambda q, k, v: fa3.flash_attn_func(q, k, v), fullgraph=True, backend="aot_eager")
    q, k, v = dense(h=3, hk=2)
    with pytest.raises(Exception, match="Number of heads in key/value must divide"):
        compiled(q, k, v)


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(64, 3 * 64)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        return fa3.flash_attn_qkvpacked_func(self.mix(x).view(b, t, 3, 4, 16), causal=True).reshape(b, t, 64)


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_export_with_a_dynamic_length(strict: bool) -> None:
    block = Block()
    shapes = {"x": {1: torch.export.Dim("t", min=2, max=512)}}
    program = torch.export.export(block, (torch.randn(2, 9, 64),), dynamic_shapes=shapes, strict=strict)
    x = torch.randn(2, 33, 64)
    torch.testing.assert_close(program.module()(x), block(x))
    assert any("flash_attn3_sm121.forward" in str(node.target) for node in program.graph.nodes)


def test_autocast_lowers_like_scaled_dot_product_attention() -> None:
    q, k, v = dense(grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = fa3.flash_attn_func(q, k, v, causal=True)
        compiled = torch.compile(dense_loss, fullgraph=True, backend="aot_eager")(q, k, v)
    assert out.dtype == torch.bfloat16
    (dq,) = torch.autograd.grad(out.float().sum(), q)
    assert dq.dtype == torch.float32
    assert compiled.isfinite()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cached = fa3.flash_attn_with_kvcache(q, k.bfloat16(), v.bfloat16(), cache_seqlens=7, causal=True)
    torch.testing.assert_close(cached, out)


def test_autocast_lowers_a_second_query_and_rotary_tables_too() -> None:
    q, k, v = dense(sq=1)
    new, table = torch.randn(2, 1, 2, 16), torch.rand(9, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fa3.flash_attn_func(q, k, v, qv=q).dtype == torch.bfloat16
        assert fa3.flash_attn_with_kvcache(q, k, v, qv=q).dtype == torch.bfloat16
        turned = fa3.flash_attn_with_kvcache(
            q, k, v, new, new, rotary_cos=table, rotary_sin=table, cache_seqlens=3, causal=True
        )
    assert turned.dtype == torch.bfloat16


def test_a_whole_cache_of_another_type() -> None:
    q, k, v = dense()
    low_k, low_v = k.bfloat16(), v.bfloat16()
    found = fa3.flash_attn_with_kvcache(q, low_k, low_v)
    torch.testing.assert_close(found, fa3.flash_attn_func(q, low_k.float(), low_v.float()))


def test_inference_mode() -> None:
    q, k, v = dense(grad=True)
    with torch.inference_mode():
        out = fa3.flash_attn_func(q, k, v, causal=True)
        assert out.is_inference()
    torch.testing.assert_close(out.clone(), fa3.flash_attn_func(q, k, v, causal=True).detach())


def test_meta_tensors_need_no_numbers() -> None:
    q, k, v = dense(device="meta")
    out, lse = fa3.flash_attn_func(q, k, v, return_attn_probs=True)
    assert (out.shape, lse.shape, lse.dtype, out.device.type) == (q.shape, (2, 4, 5), torch.float32, "meta")


def opcheck_cases() -> dict[str, tuple[str, tuple[object, ...]]]:
    torch.manual_seed(7)
    q, k, v = dense(grad=True)
    mask = (0.25, True, 3, 0, 0, 0.0)
    forward = (q, k, v, *[None] * 13, None, *mask, None, 1, None, False, 0)
    sinks = (*forward[:16], torch.randn(4, requires_grad=True), *forward[17:])
    plain_q, plain_k, plain_v = (x.detach() for x in (q, k, v))
    caches = (torch.zeros(2, 16, 2, 16), torch.zeros(2, 16, 2, 16))
    lengths = torch.tensor([0, 4], dtype=torch.int32)
    append = (plain_q, *caches, plain_k, plain_v, *[None] * 3, lengths, *[None] * 11, *mask, True, None, 0, None, 0)
    out, lse = fa3.flash_attn_func(plain_q, plain_k, plain_v, softmax_scale=0.25, causal=True, return_attn_probs=True)
    backward = (torch.randn_like(out), torch.randn_like(lse), plain_q, plain_k, plain_v, out, lse)
    partial = (torch.randn(3, 2, 5, 4, 16), torch.randn(3, 2, 5, 4), torch.bfloat16)
    return {
        "forward": ("forward", forward),
        "forward with sinks": ("forward", sinks),
        "append": ("append", append),
        "backward": ("backward", (*backward, *[None] * 7, *mask, False, 0)),
        "combine": ("combine", partial),
    }


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch 2.14's own tester
@pytest.mark.parametrize("name", ["forward", "forward with sinks", "append", "backward", "combine"])
def test_opcheck(name: str) -> None:
    """torch's own checks: schema, autograd registration, fake against real, compiled dynamically."""
    op, arguments = opcheck_cases()[name]
    torch.library.opcheck(getattr(torch.ops.flash_attn3_sm121, op).default, arguments)


@pytest.mark.parametrize("varlen", [False, True], ids=["dense", "varlen"])
def test_public_ops_under_fake_tensors(varlen: bool) -> None:
    def forward_and_backward(q: Tensor, k: Tensor, v: Tensor, cu: Tensor | None) -> list[Tensor]:
        lengths = (cu, cu, None, None, None, 7, 7) if varlen else ()
        found = list(torch.ops.flash_attn_3.fwd(q, k, v, None, None, None, None, *lengths))
        lengths = (cu, cu, None, None, 7, 7) if varlen else ()
        return found + list(torch.ops.flash_attn_3.bwd(found[0], q, k, v, *found[:2], None, None, None, *lengths))

    q, k, v, cu = packed() if varlen else (*dense(), None)
    real = forward_and_backward(q, k, v, cu)
    with FakeTensorMode() as mode:
        fakes = [None if x is None else mode.from_tensor(x) for x in (q, k, v, cu)]
        fake = forward_and_backward(*fakes)  # type: ignore[arg-type]
    assert [(x.shape, x.dtype, x.stride()) for x in fake] == [(x.shape, x.dtype, x.stride()) for x in real]


def test_private_functions_can_be_compiled() -> None:
    from flash_attn_interface import _flash_attn_backward, _flash_attn_forward

    def step(q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        out, lse, _, _ = _flash_attn_forward(q, k, v, causal=True, window_size=(3, 0))
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        softmax_d = _flash_attn_backward(dout, q, k, v, out, lse, *[None] * 6, *grads, None, True, 3, 0)
        return (out, lse, softmax_d, *grads)

    q, k, v = dense()
    dout = torch.randn_like(q)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for mine, right in zip(compiled(q, k, v, dout), step(q, k, v, dout), strict=True):
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize(
    ("rows", "dim", "call", "vectors"),
    [
        (3, 16, {"causal": True}, 4),
        (1, 16, {"causal": True}, 3),  # one row sees every key: upstream drops the mask
        (1, 128, {"causal": True, "page_size": 16}, 4),  # but for these
        (1, 64, {"causal": True, "page_size": 16}, 3),
        (1, 16, {"causal": True, "window_size": (5, 0)}, 3),
        (3, 16, {"causal": True, "attention_chunk": 8}, 3),
        (3, 16, {"window_size": (5, 1)}, 3),
        (3, 16, {"window_size": (63, 2)}, 3),
        (3, 16, {}, 3),
    ],
)
def test_scheduler_metadata_under_fake_tensors(rows: int, dim: int, call: dict[str, Any], vectors: int) -> None:
    """As long as upstream's, which a compiled program relies on."""

    def length(lengths: Tensor) -> int:
        return fa3.get_scheduler_metadata(5, rows, 64, 4, 2, dim, lengths, num_splits=2, **call).numel()

    lengths = torch.ones(5, dtype=torch.int32)
    with FakeTensorMode() as mode:
        fake = length(mode.from_tensor(lengths))
    assert fake == length(lengths) == 8 * vectors + 1
