"""What upstream's 3.0.0 offers beside its functions: two custom ops, autograd functions, helpers, build flags."""

from __future__ import annotations

import functools
import importlib
import inspect
from pathlib import Path
from typing import Any

import flash_attn_interface as dropin
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from flash_attn3_sm121.call import schemas
from flash_attn3_sm121.errors import CallError
from tests.fakes.dropin import PACKAGE, python
from tests.fakes.shapes import dense, fa3, packed

# As torch.library.infer_schema reads them off upstream's two functions at e2743ab5.
INFERRED = {
    "_flash_attn_forward": (
        "(Tensor q, Tensor k, Tensor v, Tensor? k_new=None, Tensor? v_new=None, Tensor? qv=None, Tensor? out_=None, "
        "Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, Tensor? cu_seqlens_k_new=None, Tensor? seqused_q=None, "
        "Tensor? seqused_k=None, SymInt? max_seqlen_q=None, SymInt? max_seqlen_k=None, Tensor? page_table=None, "
        "Tensor? kv_batch_idx=None, Tensor? leftpad_k=None, Tensor? rotary_cos=None, Tensor? rotary_sin=None, "
        "Tensor? seqlens_rotary=None, Tensor? q_descale=None, Tensor? k_descale=None, Tensor? v_descale=None, "
        "float? softmax_scale=None, bool causal=False, SymInt window_size_left=-1, SymInt window_size_right=-1, "
        "SymInt attention_chunk=0, float softcap=0.0, bool rotary_interleaved=True, "
        "Tensor? scheduler_metadata=None, SymInt num_splits=1, bool? pack_gqa=None, SymInt sm_margin=0) "
        "-> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "_flash_attn_backward": (
        "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor softmax_lse, Tensor? cu_seqlens_q=None, "
        "Tensor? cu_seqlens_k=None, Tensor? sequed_q=None, Tensor? sequed_k=None, SymInt? max_seqlen_q=None, "
        "SymInt? max_seqlen_k=None, Tensor(dq!)? dq=None, Tensor(dk!)? dk=None, Tensor(dv!)? dv=None, "
        "float? softmax_scale=None, bool is_causal=False, SymInt window_size_left=-1, SymInt window_size_right=-1, "
        "float softcap=0.0, bool deterministic=False, SymInt sm_margin=0) -> Tensor"
    ),
}
OPS = torch.ops.flash_attn_3


@pytest.mark.parametrize("name", INFERRED)
def test_the_custom_ops_have_upstreams_schemas(name: str) -> None:
    assert str(getattr(OPS, name).default._schema) == str(
        torch._C.parse_schema(f"flash_attn_3::{name}{INFERRED[name]}")
    )


def losses(out: Tensor, lse: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out.square().sum() + lse.sin().sum(), leaves)


def same(found: Any, expected: Any) -> None:
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, right)


def test_the_forward_op_is_the_function_with_its_gradients() -> None:
    q, k, v = dense(grad=True)
    out, lse, *accumulators = OPS._flash_attn_forward(q, k, v, causal=True, window_size_left=3)
    right = fa3.flash_attn_func(q, k, v, causal=True, window_size=(3, -1), return_attn_probs=True)
    same((out, lse, *losses(out, lse, (q, k, v))), (*right, *losses(*right, (q, k, v))))
    assert all(x.numel() == 0 for x in accumulators)


def test_the_ops_over_packed_sequences() -> None:
    q, k, v, cu = packed(grad=True)
    out, lse, *_ = OPS._flash_attn_forward(q, k, v, cu_seqlens_q=cu, cu_seqlens_k=cu, max_seqlen_q=7, max_seqlen_k=7)
    right = fa3.flash_attn_varlen_func(q, k, v, cu, cu, 7, 7, return_attn_probs=True)
    expected = torch.autograd.grad(right[0].sum(), (q, k, v))
    same((out, lse, *torch.autograd.grad(out.sum(), (q, k, v), retain_graph=True)), (*right, *expected))
    gradients = [torch.full_like(x, torch.nan).detach() for x in (q, k, v)]
    plain = [x.detach() for x in (torch.ones_like(out), q, k, v, out, lse)]
    softmax_d = OPS._flash_attn_backward(*plain, cu, cu, None, None, 7, 7, *gradients)
    same((*gradients, softmax_d), (*expected, out.sum(-1).t()))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch 2.14's check reads it
def test_the_forward_op_passes_torchs_own_checks() -> None:
    torch.library.opcheck(OPS._flash_attn_forward.default, dense(grad=True), {"causal": True})


def test_the_backward_op_under_fake_tensors() -> None:
    q, k, v = dense()
    results = fa3.flash_attn_func(q, k, v, return_attn_probs=True)
    given = dict(zip(("dout", "q", "k", "v", "out", "softmax_lse"), (q, q, k, v, *results), strict=True))
    given |= {"dq": q.clone(), "dk": k.clone(), "dv": v.clone()}  # torch 2.9 wants what may be written
    real = OPS._flash_attn_backward(**given)
    with FakeTensorMode() as mode:
        fake = OPS._flash_attn_backward(**{name: mode.from_tensor(x) for name, x in given.items()})
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


def test_what_the_forward_op_writes_is_refused_or_done() -> None:
    q, k, v = dense(sq=1, sk=1)
    cache = torch.zeros(2, 2, 8, 2, 16)
    lengths = torch.tensor([3, 4], dtype=torch.int32)
    OPS._flash_attn_forward(q, cache[0], cache[1], k, v, seqused_k=lengths)
    torch.testing.assert_close(cache[0, [0, 1], [3, 4]], k[:, 0])
    with pytest.raises(CallError, match="returns new tensors"):
        OPS._flash_attn_forward(q, k, v, out_=torch.empty_like(q))
    with pytest.raises(TypeError, match="cannot be traced"), FakeTensorMode(allow_non_fake_inputs=True):
        OPS._flash_attn_forward(q, k, v, k, v, seqused_k=lengths)
    with pytest.raises(CallError, match="qv: forward only"):
        OPS._flash_attn_forward(q.requires_grad_(), k, v, qv=q.detach())[0].sum().backward()


# diffusers 0.35 defines the first op in this way.
OLDER_DIFFUSERS = """
@torch.library.custom_op("flash_attn_3::_flash_attn_forward", mutates_args=())
def wrapped(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from flash_attn_interface import flash_attn_func
    return flash_attn_func(query, key, value, return_attn_probs=True)

@torch.library.register_fake("flash_attn_3::_flash_attn_forward")
def _(query, key, value):
    return torch.empty_like(query), query.new_empty(query.shape[:3])
"""
CALLS = """
torch.set_num_threads(1)
q = torch.randn(1, 3, 2, 8)
out, lse = wrapped(q, q, q)
assert torch.equal(out, torch.ops.flash_attn_3._flash_attn_forward(q, q, q)[0])
assert torch.equal(out, flash_attn_interface.flash_attn_func(q, q, q))
assert torch.equal(out, torch.compile(flash_attn_interface.flash_attn_func, backend="eager")(q, q, q))
written = {"dq": q.clone(), "dk": q.clone(), "dv": q.clone()}
assert torch.ops.flash_attn_3._flash_attn_backward(out, q, q, q, out, lse, **written).shape == lse.shape
"""


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_program_that_defines_the_op_itself(ours_first: bool) -> None:
    ours = "import flash_attn_interface\n"
    parts = (ours, OLDER_DIFFUSERS) if ours_first else (OLDER_DIFFUSERS, ours)
    done = python("-W", "error::RuntimeWarning", "-c", "import torch\n" + "".join(parts) + CALLS)
    assert done.returncode == 0, done.stderr


def test_bwd_returns_the_workspaces_alone() -> None:
    q, k, v = dense()
    out, lse = fa3.flash_attn_func(q, k, v, return_attn_probs=True)
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    results = OPS.bwd(torch.ones_like(out), q, k, v, out, lse, dq, dk, dv)
    named = dict(zip(schemas.BWD_WORKSPACES, results, strict=True))
    same((named["softmax_d"],), (out.sum(-1).transpose(1, 2),))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    same((dq, dk, dv), torch.autograd.grad(fa3.flash_attn_func(*leaves).sum(), leaves))


def test_our_own_ops_name_what_they_return() -> None:
    for name, schema in schemas.OWN.items():
        op = getattr(torch.ops.flash_attn3_sm121, name).default._schema
        assert all(result.name for result in op.returns), schema


# -- autograd functions


def test_the_autograd_functions_are_the_public_ones() -> None:
    q, k, v = dense(sq=6, sk=6, hk=4, grad=True)
    window = (2, 0)
    right = fa3.flash_attn_func(q, k, v, causal=True, window_size=window, return_attn_probs=True)
    expected = (*right, *losses(*right, (q, k, v)))
    rest = (None, None, None, None, window, 0, 0.0, 1, None, False, 0, True)
    found = dropin.FlashAttnFunc.apply(q, k, v, None, True, *rest)
    same((*found, *losses(*found, (q, k, v))), expected)
    for joined in (torch.stack((q, k, v), 2), torch.cat((q, k, v), 2)):
        qkv = joined.detach().requires_grad_()
        found = dropin.FlashAttnQKVPackedFunc.apply(
            qkv, None, True, None, None, None, window, 0, 0.0, False, None if qkv.dim() == 5 else 4, 0, True
        )
        (dqkv,) = losses(*found, (qkv,))
        parts = dqkv.unbind(2) if qkv.dim() == 5 else dqkv.split(4, 2)
        same((*found, *parts), expected)


def test_a_subclass_of_an_autograd_function() -> None:
    class Doubled(dropin.FlashAttnVarlenFunc):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            return 2 * dropin.FlashAttnVarlenFunc.forward(ctx, *args)

        @staticmethod
        def backward(ctx: Any, dout: Tensor, *rest: Any) -> Any:
            assert len(ctx.saved_tensors) == 9 and ctx.softmax_scale == 0.25 and ctx.window_size == (-1, -1)
            return dropin.FlashAttnVarlenFunc.backward(ctx, 2 * dout, *rest)

    q, k, v, cu = packed(grad=True)
    given = (q, k, v, cu, cu, None, None, 7, 7, None, True)
    found = Doubled.apply(*given)
    right = 2 * fa3.flash_attn_varlen_func(q, k, v, cu, cu, 7, 7, causal=True)
    same((found, *torch.autograd.grad(found.sum(), (q, k, v))), (right, *torch.autograd.grad(right.sum(), (q, k, v))))
    with pytest.raises(CallError, match="double backward"):
        (dq,) = torch.autograd.grad(dropin.FlashAttnVarlenFunc.apply(*given).sum(), q, create_graph=True)
        dq.sum().backward()
    with pytest.raises(CallError, match="qv: forward only"):
        dropin.FlashAttnFunc.apply(*dense(grad=True), None, False, dense()[0]).sum().backward()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler does that
def test_an_autograd_function_can_be_compiled() -> None:
    q, k, v, cu = packed(grad=True)
    given = (q, k, v, cu, cu.clone(), None, None, 7, 7, None, True)
    compiled = torch.compile(lambda *x: dropin.FlashAttnVarlenFunc.apply(*x), backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(dropin.FlashAttnVarlenFunc.apply(*given).sum(), q)
    same(torch.autograd.grad(compiled(*given).sum(), q), expected)


def test_a_checkpointing_policy_sees_our_op() -> None:
    from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

    seen = []

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        seen.append((op, context.is_recompute))
        ours = op is torch.ops.flash_attn3_sm121.forward.default
        return CheckpointPolicy.MUST_SAVE if ours else CheckpointPolicy.PREFER_RECOMPUTE

    q, k, v = dense(grad=True)
    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    out = checkpoint(fa3.flash_attn_func, q, k, v, use_reentrant=False, context_fn=contexts)
    same(torch.autograd.grad(out.sum(), q), torch.autograd.grad(fa3.flash_attn_func(q, k, v).sum(), q))
    assert (torch.ops.flash_attn3_sm121.forward.default, False) in seen


# -- helpers and flags


def test_helpers() -> None:
    assert [dropin.round_multiple(x, 8) for x in (0, 1, 8, 9)] == [0, 8, 8, 16]
    assert [dropin.round_up_headdim(x) for x in (1, 64, 65, 97, 129, 193, 256)] == [64, 64, 96, 128, 192, 256, 256]
    x = torch.zeros(2, 3)
    assert dropin.maybe_contiguous(x) is x and dropin.maybe_contiguous(None) is None
    turned = dropin.maybe_contiguous(x.t())
    assert turned is not None and turned.stride() == (2, 1)
    assert callable(dropin.setup_context)


def test_build_flags_have_upstreams_names() -> None:
    features = ("BACKWARD", "SPLIT", "PAGEDKV", "APPENDKV", "LOCAL", "SOFTCAP", "PACKGQA", "FP16", "FP8", "VARLEN")
    widths = [f"HDIM{width}" for width in (64, 96, 128, 192, 256)]
    expected = {f"FLASHATTENTION_DISABLE_{name}" for name in (*features, "CLUSTER", "SM8x", *widths)}
    expected |= {"FLASHATTENTION_ENABLE_VCOLMAJOR"}
    expected |= {"FLASH_ATTENTION_DISABLE_HDIMDIFF64", "FLASH_ATTENTION_DISABLE_HDIMDIFF192"}
    inner = importlib.import_module("flash_attn_3.flash_attn_config")
    assert set(inner.CONFIG["build_flags"]) == expected
    assert inner.CONFIG is importlib.import_module("flash_attn_config").CONFIG


def test_both_interface_modules_have_the_same_names() -> None:
    inner = importlib.import_module("flash_attn_3.flash_attn_interface")
    assert all(getattr(inner, name) is getattr(dropin, name) for name in dropin.__all__)
    assert PACKAGE in Path(str(dropin.__file__)).parents


def test_getfullargspec_sees_the_arguments_that_signature_sees() -> None:
    """ring-flash-attn's get_default_args asks it, on which prime-rl builds its calls of the private functions."""
    for function in filter(inspect.isfunction, (getattr(dropin, name) for name in dropin.__all__)):
        assert inspect.getfullargspec(function).args == list(inspect.signature(function).parameters)
