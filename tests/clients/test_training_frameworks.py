"""The attention of Megatron-LM, torchtitan and fairseq2, out of their wheels, over our functions and torch's hook.

They import a large part of themselves, Megatron-LM newer Pythons too: of the first two only the classes that are named
here are taken, with the lines that look for FlashAttention-3. What they name elsewhere and is faked is in the tests.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import flash_attn3_sm121 as fa3
from ci.index import Wanted
from flash_attn3_sm121.api import activation
from tests.clients.envs import texts
from tests.fakes.libraries import Kernels
from tests.fakes.shapes import plain
from tests.fakes.torch_hook import hooked

pytestmark = pytest.mark.network
MEGATRON = Wanted(
    project="megatron-core",
    filename="megatron_core-0.19.2-cp312-cp312-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    sha256="8e3e486f13f559450415b9b9dc0ff3331a0bb83dd154553f7f350a75ff9c42b5",
)
TORCHTITAN = Wanted(
    project="torchtitan",
    filename="torchtitan-0.3.0-py3-none-any.whl",
    sha256="5563ccf9a295b24e00a36087149e9c2d0686cecbd3972c31e67227029293af42",
)
FAIRSEQ2 = Wanted(
    project="fairseq2",
    filename="fairseq2-0.8.1-py3-none-any.whl",
    sha256="bf9196d122c986013b48aa749d9547226435a0fb4dd1353af2c52c6bf24bf4a0",
)
INT = torch.int32


def taken(text: str, *wanted: str, **names: Any) -> dict[str, Any]:
    """The statements of a file that define or import what is wanted, run where `names` are known."""

    def concerns(node: ast.stmt) -> bool:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            return node.name in wanted
        return isinstance(node, ast.Try) and any(name in ast.unparse(node.body) for name in wanted)

    body = [node for node in ast.parse(text).body if concerns(node)]
    code = compile(ast.Module(body=body, type_ignores=[]), "client", "exec", flags=__future__.annotations.compiler_flag)
    names["__name__"] = __name__
    exec(code, names)
    del names["__name__"]
    return names


@pytest.fixture(scope="module")
def megatron() -> Any:
    """Its attention layer at inference, with a window; no layer of its own is built."""
    file, utils = "megatron/core/transformer/attention.py", "megatron/core/transformer/utils.py"
    found = texts(MEGATRON, file, utils)
    names = taken(
        found[file],
        *("flash_attn_3.flash_attn_interface", "Attention"),
        **{
            "torch": torch,
            "inspect": inspect,
            "HAVE_FA4": False,
            "ABC": type("ABC", (), {}),
            "MegatronModule": type("M", (), {}),
        },
        **dict.fromkeys(("abstractmethod", "jit_fuser"), lambda function: function),
        MLATransformerConfig=type("MLA", (), {}),
        **taken(found[utils], "is_layer_window_attention"),
    )
    assert names["HAVE_FA3"] is True
    layer = object.__new__(names["Attention"])
    layer.config = SimpleNamespace(window_size=(3, 0), window_attn_skip_freq=None)
    layer.layer_number, layer.training, layer.batch_invariant_mode, layer.flash_attention_version = (
        1,
        False,
        False,
        None,
    )
    return layer


@pytest.mark.parametrize("counts", [[1, 1], [2, 3]], ids=["decode", "prefill"])
@pytest.mark.parametrize("sinks", [None, torch.tensor([0.5, -1.0, 2.0, 0.0])], ids=["plain", "sinks"])
def test_megatrons_paged_inference(megatron: Any, counts: list[int], sinks: Tensor | None) -> None:
    pages, table = torch.randn(2, 6, 4, 2, 16), torch.tensor([[5, 1], [0, 3]], dtype=INT)
    lengths = torch.tensor([7, 3], dtype=INT)
    cu_q, cu_k = (F.pad(torch.tensor(sizes).cumsum(0), (1, 0)).int() for sizes in (counts, lengths.tolist()))
    q, decoding = torch.randn(sum(counts), 1, 4, 16), counts == [1, 1]
    given = (q, *pages, max(counts), 8, cu_q, cu_k, lengths, table, decoding)
    if decoding and sinks is not None:
        # It takes two results, where flash_attn_with_kvcache has four, upstream's as well as ours.
        with pytest.raises(ValueError, match="too many values to unpack"):
            megatron.flash_decode_and_prefill(*given, softmax_offset=sinks)
        return
    out = megatron.flash_decode_and_prefill(*given, softmax_offset=sinks)
    assert out.shape == q.shape
    for row, count in enumerate(counts):
        tokens = slice(int(cu_q[row]), int(cu_q[row]) + count)
        mine = q[tokens].transpose(0, 1)
        k, v = (cache[table[row].long()].flatten(0, 1)[None, : lengths[row]] for cache in pages)
        right = plain(mine, k, v, causal=True, window=(3, 0))
        if sinks is not None:
            right = fa3.flash_attn_func(mine, k, v, causal=True, window_size=(3, 0), s_aux=sinks.bfloat16())
        torch.testing.assert_close(out[tokens].transpose(0, 1), right.to(out), atol=2e-5, rtol=2e-5)


@hooked
def test_torchtitan_asks_for_fa4_and_gets_our_kernels(native: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faked: CUDA's answers, its module base class, and its annotations of how a tensor is sharded."""
    from torch.nn import attention
    from torch.nn.attention import varlen

    utils, file = "torchtitan/tools/utils.py", "torchtitan/models/common/attention.py"
    found = texts(TORCHTITAN, utils, file)
    tools = ModuleType("torchtitan.tools.utils")
    vars(tools).update(taken(found[utils], "has_cuda_capability", "get_cuda_flash_attention_impl", torch=torch))
    for name in ("torchtitan", "torchtitan.tools"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, tools.__name__, tools)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (12, 1))
    names = taken(
        found[file],
        *("VarlenMetadata", "VarlenAttention"),
        **{"torch": torch, "dataclass": dataclass, "NamedTuple": NamedTuple, "varlen_attn": varlen.varlen_attn},
        **{"VarlenAuxRequest": varlen.AuxRequest, "is_in_batch_invariant_mode": lambda: False},
        **{"Module": type("Module", (), {"Config": type("Config", (), {})}), "get_spmd_backend": lambda: None},
        **{"spmd": SimpleNamespace(no_typecheck=nullcontext)},
        activate_flash_attention_impl=attention.activate_flash_attention_impl,
        current_flash_attention_impl=attention.current_flash_attention_impl,
    )
    activation.activate("cpu")
    layer = names["VarlenAttention"](names["VarlenAttention"].Config(window_size=(3, 0)))
    assert attention.current_flash_attention_impl() == "FA4"
    cu = torch.tensor([0, 5, 5, 14], dtype=INT)
    q, k, v = (torch.randn(1, 14, heads, 64, dtype=torch.bfloat16, requires_grad=True) for heads in (4, 2, 2))
    metadata = names["VarlenMetadata"](cu, cu, 9, 9)
    out = layer.forward(q, k, v, attention_masks=metadata, enable_gqa=True)
    right = torch.cat(
        [plain(*(x[:, a:b] for x in (q, k, v)), causal=True, window=(3, 0)) for a, b in ((0, 5), (5, 14))], 1
    )
    torch.testing.assert_close(out, right.to(out), atol=2e-2, rtol=2e-2)
    dout = torch.randn_like(out)
    wanted = torch.autograd.grad(right, (q, k, v), dout.double())
    for mine, one in zip(torch.autograd.grad(out, (q, k, v), dout), wanted, strict=True):
        torch.testing.assert_close(mine, one.to(mine), atol=3e-2, rtol=3e-2)
    assert (len(native.calls), native.backward_calls) == (1, 1)


@pytest.fixture(scope="module")
def fairseq2() -> Iterator[Any]:
    """Its file for FlashAttention-3; faked: the rest of the package, and that its ops are for CUDA tensors alone."""
    file, package = "fairseq2/models/transformer/sdpa/flash3.py", {
        "fairseq2.error": ("NotSupportedError", "OperationalError"),
        "fairseq2.models.transformer.attention_bias": (
            *("AttentionBias", "AttentionBiasCache", "CausalAttentionBias", "IdentityBias"),
        ),
        "fairseq2.models.transformer.sdpa.base": ("SDPA",),
        "fairseq2.nn": ("BatchLayout",),
    }  # fmt: skip
    text = texts(FAIRSEQ2, file)[file]
    assert 'device_types="cuda"' in text
    module = ModuleType("fairseq2_flash3")
    with pytest.MonkeyPatch.context() as patch:
        for name, members in package.items():
            parts = name.split(".")
            for end in range(1, len(parts)):
                patch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(parts[0]))
            patch.setitem(sys.modules, name, SimpleNamespace(**{one: type(one, (), {}) for one in members}))
        patch.setitem(sys.modules, module.__name__, module)
        exec(compile(text.replace('device_types="cuda"', 'device_types="cpu"'), "flash3.py", "exec"), vars(module))
        yield module  # older compilers import it by its name


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_fairseq2s_attention(fairseq2: Any, packed: bool) -> None:
    """It calls the ops by position, inside of ops and backwards of its own."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 17, 4, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    call: dict[str, Any] = {"causal": True, "lhs_window_size": 5}
    if packed:
        cu = torch.tensor([0, 17, 34], dtype=INT)
        flat = fairseq2.flash_attn_3_varlen(*(x.flatten(0, 1) for x in (q, k, v)), cu, cu, 17, 17, **call)
        out = flat.unflatten(0, (2, 17))
    else:
        out = fairseq2.flash_attn_3(q, k, v, **call)
        compiled = torch.compile(fairseq2.flash_attn_3, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(q, k, v, **call), out, atol=0, rtol=0)
    right = plain(q, k, v, causal=True, window=(5, 0))
    torch.testing.assert_close(out, right.to(out), atol=2e-2, rtol=2e-2)
    dout = torch.randn_like(out)
    wanted = torch.autograd.grad(right, (q, k, v), dout.double())
    for mine, one in zip(torch.autograd.grad(out, (q, k, v), dout), wanted, strict=True):
        torch.testing.assert_close(mine, one.to(mine), atol=3e-2, rtol=3e-2)
