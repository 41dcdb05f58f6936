"""The opt-in hook into plain scaled_dot_product_attention: its registration, and the numbers of what it registers."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn import attention

from flash_attn3_sm121.api import activation
from flash_attn3_sm121.errors import BackendError
from tests.fakes.libraries import Kernels, half
from tests.fakes.torch_hook import hooked


def heads_first(**sizes: int) -> list[torch.Tensor]:
    return [x.transpose(1, 2) for x in half(**sizes)]


@hooked
def test_forward_and_backward_in_sdpas_own_layout(native: Kernels) -> None:
    q, k, v = heads_first(sk=5, hk=4)
    out, lse, *rest = activation._sdpa_forward(q, k, v, 0.0, True, scale=0.3)
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*leaves, is_causal=True, scale=0.3)
    torch.testing.assert_close(out, expected, atol=2e-2, rtol=2e-2)
    assert (out.stride(), lse.shape, len(rest)) == (q.stride(), (2, 4, 5), 7)
    assert rest[:4] == [None, None, 5, 5]
    grad = torch.randn_like(out)
    found = activation._sdpa_backward(grad, q, k, v, out, lse, None, None, 5, 5, 0.0, True, *rest[4:6], scale=0.3)
    for mine, right in zip(found, torch.autograd.grad(expected, leaves, grad), strict=True):
        torch.testing.assert_close(mine, right, atol=3e-2, rtol=3e-2)
    assert (len(native.calls), native.backward_calls) == (1, 1)


def overload(name: str) -> Any:
    packet, _, which = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), which or "default")


def sample_arguments(schema: Any) -> tuple[list[Any], dict[str, Any]]:
    """Arguments of a forward op as torch's dispatcher passes them: bf16 tensors (b, s, h, d), causal, no dropout."""
    heads_last = "_scaled" not in schema.name
    q, k, v = half(sk=5, hk=4) if heads_last else heads_first(sk=5, hk=4)
    values = {"query": q, "key": k, "value": v, "out": torch.empty_like(q), "max_q": 5, "max_k": 5, "is_causal": True}
    values |= {"dropout_p": 0.0, "return_debug_mask": False}
    positional = [values.get(a.name) for a in schema.arguments if not a.kwarg_only]
    return positional, {a.name: None for a in schema.arguments if a.kwarg_only}


@hooked
@pytest.mark.parametrize("name", [name for name in activation.KERNELS if "backward" not in name])
def test_every_forward_kernel_takes_torchs_call(native: Kernels, name: str) -> None:
    if not torch._C._dispatch_has_kernel(f"aten::{name}"):
        pytest.skip(f"torch {torch.__version__} has no such op")
    schema = overload(name)._schema
    positional, keywords = sample_arguments(schema)
    results = activation.KERNELS[name](*positional, **keywords)
    results = results if isinstance(results, tuple) else (results,)
    assert len(results) == len(schema.returns)
    query, key, value = (positional[[a.name for a in schema.arguments].index(n)] for n in ("query", "key", "value"))
    axes = (1, 2) if "_scaled" not in name else (0, 0)
    expected = F.scaled_dot_product_attention(*(x.transpose(*axes) for x in (query, key, value)), is_causal=True)
    found = positional[0] if "inplace" in name else results[0]
    torch.testing.assert_close(found.transpose(*axes), expected, atol=2e-2, rtol=2e-2)
    assert len(native.calls) == 1


@hooked
def test_every_op_that_torchs_own_flash_attention_serves_is_registered() -> None:
    """torch's implementation tells which ops there are; a new one is noticed here."""
    import torch.nn.attention._fa3 as hook

    names = set(re.findall(r'"(_(?:flash|scaled)[\w.]+)"', inspect.getsource(hook._fa3_register_kernels)))
    assert names == {name for name in activation.KERNELS if torch._C._dispatch_has_kernel(f"aten::{name}")}


@hooked
def test_activation_registers_and_can_be_undone(native: Kernels) -> None:
    ops = [f"aten::{name}" for name in activation.KERNELS if torch._C._dispatch_has_kernel(f"aten::{name}")]
    activation.activate("cpu")
    assert attention.current_flash_attention_impl() == activation.IMPLEMENTATION
    assert activation.IMPLEMENTATION in attention.list_flash_attention_impls()
    assert all(torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU") for name in ops)
    attention.restore_flash_attention_impl()
    assert attention.current_flash_attention_impl() is None
    assert not any(torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU") for name in ops)


@hooked
def test_torch_lets_e4m3_through_while_it_is_active(native: Kernels) -> None:
    """Without torch's switch for it, its choice of a backend takes no e4m3 tensor to any flash attention."""
    if not hasattr(torch._C, "_get_fa3_sdp_enabled"):
        pytest.skip(f"torch {torch.__version__} has no such switch")
    activation.activate("cpu")
    assert torch._C._get_fa3_sdp_enabled()
    attention.restore_flash_attention_impl()
    assert not torch._C._get_fa3_sdp_enabled()


@hooked
@pytest.mark.filterwarnings("ignore:Warning only once for all operators")  # a torch with CUDA says what is overridden
def test_a_cuda_device_is_registered_as_one(native: Kernels) -> None:
    probe = ("aten::_flash_attention_forward", "CUDA")
    before = torch._C._dispatch_has_kernel_for_dispatch_key(*probe)  # a torch with CUDA has one of its own
    handle = activation.Handle("CUDA")
    assert torch._C._dispatch_has_kernel_for_dispatch_key(*probe)
    handle.remove()
    assert torch._C._dispatch_has_kernel_for_dispatch_key(*probe) is before


@hooked
@pytest.mark.parametrize("name", ["FA3", "FA4"])
def test_programs_that_ask_torch_for_a_newer_one_get_ours(native: Kernels, name: str) -> None:
    """torchtitan activates "FA4" on capability 12.1, which removed our activation and then failed."""
    activation.activate("cpu")
    attention.activate_flash_attention_impl(name)
    assert attention.current_flash_attention_impl() == name
    assert isinstance(attention._registry._FLASH_ATTENTION_ACTIVE[1], activation.Handle)


@hooked
@pytest.mark.skipif(not hasattr(torch._C, "_set_sm_carveout_experimental"), reason="this torch leaves no SM free")
def test_the_sms_that_torch_leaves_free_are_left_free(native: Kernels) -> None:
    q, k, v = heads_first()
    torch._C._set_sm_carveout_experimental(4)
    try:
        activation._sdpa_forward(q, k, v, 0.0)
    finally:
        torch._C._set_sm_carveout_experimental(None)
    activation._sdpa_forward(q, k, v, 0.0)
    assert [call.sm_margin for call in native.calls] == [4, 0]


@hooked
def test_dropout_and_biases_are_refused(native: Kernels) -> None:
    q, k, v = heads_first()
    with pytest.raises(BackendError, match=r"no dropout, and forward was asked for dropout_p=0\.1"):
        activation._sdpa_forward(q, k, v, 0.1)
    with pytest.raises(BackendError, match="neither alibi_slopes nor a debug mask"):
        activation._sdpa_forward(q, k, v, 0.0, False, True)
    assert native.calls == []


@hooked
def test_a_call_that_native_refuses_says_why_instead_of_looping(native: Kernels) -> None:
    q, k, v = (x.float() for x in heads_first())
    with pytest.raises(BackendError, match="dtype fp32 is not among those of the sm8x library"):
        activation._sdpa_forward(q, k, v)


@hooked
def test_a_clear_no_without_a_device_of_ours() -> None:
    with pytest.raises(BackendError, match="torch sees no CUDA device here"):
        activation.activate()
    with pytest.raises(BackendError, match="our kernels do not serve cpu"):
        activation.activate("cpu")


def test_a_clear_no_where_torch_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(attention, "register_flash_attention_impl", raising=False)
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    with pytest.raises(BackendError, match=r"torch 2\.9\.1 has no torch\.nn\.attention\.register") as caught:
        activation.activate()
    assert "update torch" in str(caught.value)


@hooked
def test_torchs_own_hook_finds_what_it_looks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's FA3 registration imports flash_attn_interface and calls `fwd` with 34 positional arguments."""
    import torch.nn.attention._fa3 as hook

    hook._fa3_import_module("flash_attn_interface")
    assert hook._FA3_CUDA_FWD is torch.ops.flash_attn_3.fwd
    q, k, v = half(sk=5, hk=4)
    out: Any = torch.empty_like(q.transpose(1, 2)).transpose(1, 2)  # preallocated in another layout
    found, lse = hook._fa3_run_forward(q, k, v, None, None, 5, 5, 0.25, True, None, None, None, out)
    assert found.data_ptr() == out.data_ptr()
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True, scale=0.25)
    torch.testing.assert_close(out.transpose(1, 2), expected, atol=2e-2, rtol=2e-2)
    dq, dk, dv = hook._fa3_run_backward(out, q, k, v, out, lse, None, None, 5, 5, 0.25, True, -1, -1)
    assert [x.shape for x in (dq, dk, dv)] == [q.shape, k.shape, v.shape]
    assert all(bool(x.isfinite().all()) for x in (dq, dk, dv))
