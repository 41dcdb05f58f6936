"""What in torch itself calls flash attention, from its public function through the activation to (faked) kernels."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import attention
from torch.nn.attention import SDPBackend

from flash_attn3_sm121.api import activation
from tests.fakes.dropin import python
from tests.fakes.libraries import Kernels
from tests.fakes.torch_hook import hooked

pytestmark = hooked
if hasattr(attention, "restore_flash_attention_impl"):
    from torch.nn.attention import varlen
EDGES = [0, 3, 3, 12, 13]
LONGEST = 9
TOLERANCE = {"atol": 3e-2, "rtol": 3e-2}


def tokens(*, grad: bool = False) -> tuple[Tensor, ...]:
    """q, k, v and an output's gradient of packed sequences, and where these begin and end."""
    q, k, v, dout = torch.randn(4, EDGES[-1], 4, 64, dtype=torch.bfloat16)
    for leaf in (q, k, v):
        leaf.requires_grad_(grad)
    return q, k, v, dout, torch.tensor(EDGES, dtype=torch.int32)


def one_by_one(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True) -> Tensor:
    """The same attention, each sequence by itself."""
    outs = []
    for begin, end in pairwise(EDGES):
        turned = (x[begin:end].transpose(0, 1) for x in (q, k, v))
        outs.append(F.scaled_dot_product_attention(*turned, is_causal=causal).transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("causal", [False, True])
def test_varlen_attn(native: Kernels, causal: bool) -> None:
    q, k, v, dout, cu = tokens(grad=True)
    expected = one_by_one(q, k, v, causal=causal)
    wanted = torch.autograd.grad(expected, (q, k, v), dout)
    activation.activate("cpu")
    out, lse = varlen.varlen_attn(
        *(q, k, v, cu, cu, LONGEST, LONGEST),
        return_aux=varlen.AuxRequest(lse=True),
        window_size=(-1, 0 if causal else -1),
    )
    assert lse.shape == (4, EDGES[-1])
    torch.testing.assert_close(out, expected, **TOLERANCE)
    for found, right in zip(torch.autograd.grad(out, (q, k, v), dout), wanted, strict=True):
        torch.testing.assert_close(found, right, **TOLERANCE)
    assert (len(native.calls), native.backward_calls) == (1, 1)


def test_varlen_attn_compiles(native: Kernels) -> None:
    q, k, v, _, cu = tokens()
    activation.activate("cpu")
    compiled = torch.compile(varlen.varlen_attn, backend="aot_eager", fullgraph=True)
    out = compiled(q, k, v, cu, cu, LONGEST, LONGEST, window_size=(-1, 0))
    torch.testing.assert_close(out, one_by_one(q, k, v), **TOLERANCE)
    assert len(native.calls) == 1


@pytest.mark.parametrize("compiled", [False, True])
def test_varlen_attn_with_a_v_of_another_head_dim(native: Kernels, compiled: bool) -> None:
    if compiled and not hasattr(varlen, "_empty_with_matching_layout"):  # since 2.15
        pytest.skip(f"torch {torch.__version__} compiles it with q's head dim for the output")
    q, k, _, _, cu = tokens(grad=True)
    v, dout = torch.randn(2, EDGES[-1], 4, 128, dtype=torch.bfloat16)
    v.requires_grad_()
    expected = one_by_one(q, k, v)
    wanted = torch.autograd.grad(expected, (q, k, v), dout)
    activation.activate("cpu")
    attend = varlen.varlen_attn
    if compiled:
        attend = torch.compile(attend, backend="aot_eager", fullgraph=True)
    out = attend(q, k, v, cu, cu, LONGEST, LONGEST, window_size=(-1, 0))
    torch.testing.assert_close(out, expected, **TOLERANCE)
    for found, right in zip(torch.autograd.grad(out, (q, k, v), dout), wanted, strict=True):
        torch.testing.assert_close(found, right, **TOLERANCE)
    assert (len(native.calls), native.backward_calls) == (1, 1)


def test_torch_leaves_packed_sequences_to_flash_attention_on_12_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """On 9.0 and 10.x it prefers cuDNN from 2.14 on, and does not come to what is activated."""
    if not hasattr(varlen, "_should_use_cudnn"):
        pytest.skip(f"torch {torch.__version__} does not choose there")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 99999)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (12, 1))
    assert not varlen._should_use_cudnn(121)  # kept for this number, which no device has


@pytest.mark.parametrize("named", [False, True], ids=["cu_seq_k", "block_table alone"])
def test_varlen_attn_out_over_a_paged_cache(native: Kernels, named: bool) -> None:
    """As torchtitan's engine calls it: prefill, the newest tokens of each row against pages of a cache."""
    if not hasattr(varlen, "varlen_attn_out"):
        pytest.skip(f"torch {torch.__version__} has no varlen_attn_out")
    lengths, pages = torch.tensor([9, 5], dtype=torch.int32), torch.tensor([[2, 0], [1, 3]], dtype=torch.int32)
    cache_k, cache_v = (torch.randn(4, 8, 2, 64, dtype=torch.bfloat16) for _ in range(2))
    q = torch.randn(5, 4, 64, dtype=torch.bfloat16)
    cu_q, cu_k = torch.tensor([0, 3, 5], dtype=torch.int32), torch.tensor([0, 9, 14], dtype=torch.int32)
    out = torch.empty_like(q)
    activation.activate("cpu")
    with torch.no_grad():
        found = varlen.varlen_attn_out(
            *(out, q, cache_k, cache_v, cu_q, None if named else cu_k, 3, 16),
            window_size=(-1, 0),
            enable_gqa=True,
            seqused_k=lengths,
            block_table=pages,
        )
    assert found.data_ptr() == out.data_ptr()
    for row, (begin, end) in enumerate(pairwise(cu_q.tolist())):
        k, v = (cache[pages[row].long()].flatten(0, 1)[: lengths[row]] for cache in (cache_k, cache_v))
        seen = torch.ones(end - begin, len(k), dtype=torch.bool).tril(len(k) - (end - begin))
        turned = (x.transpose(0, 1) for x in (q[begin:end], k, v))
        right = F.scaled_dot_product_attention(*turned, attn_mask=seen, enable_gqa=True).transpose(0, 1)
        torch.testing.assert_close(out[begin:end], right, **TOLERANCE)
    assert len(native.calls) == 1


def test_jagged_tensors(native: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA torch takes the flash backend for these by itself; on a CPU it has to be told."""
    import torch.nested._internal.sdpa as jagged

    monkeypatch.setattr(jagged, "_select_sdp_backend", lambda *_: SDPBackend.FLASH_ATTENTION)
    q, k, v, dout, cu = tokens(grad=True)
    expected = one_by_one(q, k, v)
    wanted = torch.autograd.grad(expected, (q, k, v), dout)
    activation.activate("cpu")
    nested = (torch.nested.nested_tensor_from_jagged(x, cu.long()).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(*nested, is_causal=True).transpose(1, 2).values()
    torch.testing.assert_close(out, expected, **TOLERANCE)
    for found, right in zip(torch.autograd.grad(out, (q, k, v), dout), wanted, strict=True):
        torch.testing.assert_close(found, right, **TOLERANCE)
    assert (len(native.calls), native.backward_calls) == (1, 1)


def test_context_parallel_on_two_processes() -> None:
    done = python("-m", "tests.api.two_processes")
    assert done.returncode == 0, done.stderr
    *gaps, forwards, backwards = (float(word) for word in done.stdout.split())
    assert len(gaps) == 4 and max(gaps) < 4e-2
    assert (forwards, backwards) == (2, 2)  # a process's own keys, and those of the other
