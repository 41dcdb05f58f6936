"""The fast path of plain calls: the same numbers and refusals as through the engine, which the first call asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import flash_attn3_sm121 as fa3
from flash_attn3_sm121 import fallback
from flash_attn3_sm121.call.arguments import BackwardArgs, ForwardArgs
from flash_attn3_sm121.call.backend import use_backend
from flash_attn3_sm121.dispatch.engine import Engine
from flash_attn3_sm121.errors import CallError
from tests.fakes.libraries import Kernels, engine, half, install

CAUSAL: dict[str, Any] = {"softmax_scale": 0.25, "causal": True, "window_left": 5, "window_right": 0}


@pytest.fixture
def kernels() -> Iterator[Kernels]:
    yield Kernels()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Engine], list[str]]:
    """Make an engine everybody's; the list that is returned gathers the calls that it served itself."""

    def serve_with(serving: Engine) -> list[str]:
        engine_calls: list[str] = []
        forward = serving.forward
        monkeypatch.setattr(serving, "forward", lambda args: (engine_calls.append("forward"), forward(args))[1])
        install(monkeypatch, serving)
        return engine_calls

    return serve_with


def attend(q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Any:
    return fa3.flash_attn_func(q, k, v, softmax_scale=0.25, causal=True, window_size=(5, 0), **more)


def expected(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return fallback.forward(ForwardArgs(q=q.detach(), k=k.detach(), v=v.detach(), **CAUSAL))


def test_inference_asks_the_engine_once(kernels: Kernels, serve: Callable[[Engine], list[str]]) -> None:
    engine_calls = serve(engine(kernels.open))
    for _ in range(4):
        q, k, v = half()
        out, lse = attend(q, k, v, return_attn_probs=True)
        right, right_lse = expected(q, k, v)
        torch.testing.assert_close(out, right)
        torch.testing.assert_close(lse, right_lse)
        assert out.is_contiguous() and lse.is_contiguous()
    assert (len(engine_calls), len(kernels.calls)) == (1, 4)


def test_engine_and_fast_path_hand_the_kernel_the_same_call(
    kernels: Kernels, serve: Callable[[Engine], list[str]]
) -> None:
    engine_calls = serve(engine(kernels.open))
    q, k, v = half()
    for _ in range(2):
        attend(q, k, v, num_splits=1, pack_gqa=True, sm_margin=3)
    first, second = (
        {name: getattr(call, name) for name in ForwardArgs.__slots__ if name not in ("q", "k", "v")}
        for call in kernels.calls
    )
    assert first == second and len(engine_calls) == 1
    assert kernels.calls[1].q is q and kernels.calls[1].v is v


@pytest.mark.parametrize("lse_too", [False, True], ids=["out", "out and lse"])
def test_training_gives_the_same_gradients(
    kernels: Kernels, serve: Callable[[Engine], list[str]], lse_too: bool
) -> None:
    engine_calls = serve(engine(kernels.open))
    for turn in range(3):
        inputs = [x.requires_grad_() for x in half()]
        out, lse = attend(*inputs, return_attn_probs=True)
        loss = out.float().square().sum() + (lse.sum() if lse_too else 0)
        found = torch.autograd.grad(loss, inputs)
        right, right_lse = expected(*inputs)
        q, k, v = (x.detach() for x in inputs)
        want = fallback.backward(
            BackwardArgs(
                dout=(2 * right.float()).to(right.dtype), dlse=torch.ones_like(right_lse) if lse_too else None,
                q=q, k=k, v=v, out=right, softmax_lse=right_lse, **CAUSAL,
            )
        )  # fmt: skip
        for a, b in zip(found, want[:3], strict=True):
            torch.testing.assert_close(a, b)
            assert a.is_contiguous()
        assert len(engine_calls) == 1, f"turn {turn}"
    assert kernels.backward_calls == 3, "of the LSE too"


def test_only_one_input_wants_a_gradient(kernels: Kernels, serve: Callable[[Engine], list[str]]) -> None:
    serve(engine(kernels.open))
    q, k, v = half()
    attend(q, k, v)
    v.requires_grad_()
    out = attend(q, k, v)
    (dv,) = torch.autograd.grad(out.float().sum(), v)
    assert dv.shape == v.shape and dv.any()


def test_no_second_derivative(kernels: Kernels, serve: Callable[[Engine], list[str]]) -> None:
    serve(engine(kernels.open))
    for _ in range(2):
        q, k, v = (x.requires_grad_() for x in half())
        out = attend(q, k, v)
    (dq,) = torch.autograd.grad(out.float().square().sum(), q, create_graph=True)
    with pytest.raises(CallError, match="double backward is not supported"):
        torch.autograd.grad(dq.float().sum(), q)


def test_a_changed_input_is_noticed(kernels: Kernels, serve: Callable[[Engine], list[str]]) -> None:
    serve(engine(kernels.open))
    for _ in range(2):
        q, k, v = (x.requires_grad_() for x in half())
        out = attend(q, k, v)
    with torch.no_grad():
        k.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.float().sum().backward()


def test_what_must_take_the_engine_calls(kernels: Kernels, serve: Callable[[Engine], list[str]]) -> None:
    engine_calls = serve(engine(kernels.open))
    q, k, v = half()
    attend(q, k, v)
    strided = q.transpose(-1, -2).contiguous().transpose(-1, -2)
    torch.testing.assert_close(attend(strided, k, v), expected(q, k, v)[0])
    assert len(engine_calls) == 2 and len(kernels.calls) == 2
    with use_backend("sdpa"):
        attend(q, k, v)
    assert len(engine_calls) == 3 and len(kernels.calls) == 2
    attend(q, k, v, s_aux=torch.zeros(q.shape[2]))
    assert len(engine_calls) == 4 and len(kernels.calls) == 3
    with pytest.raises(TypeError, match=r"k must be a torch\.Tensor, found list"):
        attend(q, [1.0], v)  # type: ignore[arg-type]


def test_a_window_in_the_fallback_has_no_fast_path(kernels: Kernels, serve: Callable[[Engine], list[str]]) -> None:
    engine_calls = serve(engine(kernels.open))
    q, k, v = (x.float() for x in half())
    for _ in range(3):
        torch.testing.assert_close(attend(q, k, v), expected(q, k, v)[0])
    assert len(engine_calls) == 3 and not kernels.calls


@pytest.mark.parametrize("window", [(-1, -1), (500, 0)], ids=["no window", "one that hides nothing"])
def test_plain_causal_in_the_fallback_has_one(
    kernels: Kernels, serve: Callable[[Engine], list[str]], window: tuple[int, int]
) -> None:
    engine_calls = serve(engine(kernels.open))
    for shape in ((2, 40, 4, 16), (1, 33, 4, 16)):
        for _ in range(3):
            q, k, v = (torch.randn(shape).requires_grad_() for _ in range(3))
            out, lse = fa3.flash_attn_func(q, k, v, causal=True, window_size=window, return_attn_probs=True)
            args = ForwardArgs(q=q, k=k, v=v, softmax_scale=0.25, causal=True, window_right=0)
            with torch.no_grad():
                right, right_lse = fallback.forward(args)
            torch.testing.assert_close(out, right)
            torch.testing.assert_close(lse, right_lse)
            assert out.is_contiguous() and lse.is_contiguous()
            found = torch.autograd.grad(out.square().sum() + lse.sum(), (q, k, v))
            with torch.no_grad():
                want = fallback.backward(
                    BackwardArgs(
                        dout=2 * right, dlse=torch.ones_like(right_lse), q=q, k=k, v=v, out=right,
                        softmax_lse=right_lse, softmax_scale=0.25, causal=True, window_right=0,
                    )
                )  # fmt: skip
            for a, b in zip(found, want[:3], strict=True):
                torch.testing.assert_close(a, b)
    assert len(engine_calls) == 2, "once for each shape"
    assert fa3.flash_attn_func(*(x[:, :, ::2] for x in (q, k, v)), causal=True).is_contiguous()
    with pytest.raises(CallError, match="must have shape"):
        fa3.flash_attn_func(q, k, v[:, :5], causal=True)


def test_a_failed_canary_closes_it(serve: Callable[[Engine], list[str]]) -> None:
    kernels = Kernels()
    serving = engine(kernels.open, canary=True)
    serve(serving)
    for _ in range(3):
        inputs = [x.requires_grad_() for x in half()]
        out = attend(*inputs)
    kernels.spoil = lambda tensor: tensor.add_(1)
    with pytest.warns(RuntimeWarning, match="canary"):
        torch.autograd.grad(out.float().sum(), inputs)
    before = len(kernels.calls)
    torch.testing.assert_close(attend(*inputs).detach(), expected(*inputs)[0])
    assert len(kernels.calls) == before
