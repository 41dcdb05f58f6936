"""The code of vLLM, SGLang and LMDeploy that calls FlashAttention-3, out of their wheels.

vLLM and SGLang have interfaces of the hub, and on 12.1 both ask for another GPU before they come to these calls, which
docs/clients.md says. LMDeploy imports the installed package. Only the files that are read come through the network. No
engine is installed or started.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import flash_attn3_sm121 as fa3
from ci.index import Wanted
from flash_attn3_sm121.fa2 import interface as fa2
from flash_attn3_sm121.hub import sgl_interface, vllm_interface
from flash_attn3_sm121.hub.patch import OverrideConfig, activate, deactivate
from tests.clients.envs import VLLM, texts
from tests.fakes.shapes import plain

pytestmark = pytest.mark.network
SGLANG = Wanted(
    project="sglang",
    filename="sglang-0.5.23-cp311-cp311-manylinux_2_34_x86_64.whl",
    sha256="00b3cd5b265ac76c64185fbb6b95424f324ddd9f428d0306b77bc9db9d859937",
)
LMDEPLOY = Wanted(
    project="lmdeploy",
    filename="lmdeploy-0.18.0-cp311-cp311-manylinux_2_28_x86_64.whl",
    sha256="e6790a25dcdb0345c160567fdf2ac604fec319389523a8b806834c9d92c8ffe1",
)
ATTENTION = "vllm/v1/attention/"
# Every file of the wheel that calls vLLM's FlashAttention for CUDA, and how often; others have functions of the same
# name from elsewhere. FlashAttention-4 alone: vllm/models/inkling and kimi_k3.
CALLERS = {
    f"{ATTENTION}backends/flash_attn.py": 6,
    f"{ATTENTION}backends/flash_attn_diffkv.py": 1,
    f"{ATTENTION}backends/turboquant_attn.py": 2,
    f"{ATTENTION}backends/mla/flashattn_mla.py": 3,
    f"{ATTENTION}backends/mla/flashattn_mla_sparse.py": 2,
    f"{ATTENTION}ops/vit_attn_wrappers.py": 1,
    "vllm/v1/worker/cp_utils.py": 2,
    "vllm/model_executor/models/mimo_audio.py": 1,
    "vllm/models/dots3_note/nvidia/attention.py": 1,
    "vllm/models/dots3_note/nvidia/audio_encoder.py": 1,
    "vllm/models/dots3_note/nvidia/vision_attention.py": 1,
}
# These put the arguments together in a dictionary first.
GATHERERS = (
    f"{ATTENTION}backends/mla/prefill/flash_attn.py",
    "vllm/model_executor/layers/attention/sparse_mla_attention.py",
)
WRAPPER = "vllm/vllm_flash_attn/flash_attn_interface.py"
SGLANG_FA2 = {  # with FlashAttention-2's names
    "sglang/multimodal_gen/runtime/layers/attention/backends/flash_attn_2.py": ("flash_attn_func",),
    "sglang/multimodal_gen/runtime/models/sensenova_u1/neo_unify/modeling_qwen3.py": ("flash_attn_func",),
    "sglang/srt/layers/attention/qwen_sparse_attn_backend.py": ("flash_attn_varlen_func",),
    "sglang/multimodal_gen/csrc/attn/vmoba_attn/vmoba/vmoba.py": (
        "flash_attn_varlen_func", "_flash_attn_varlen_forward", "_flash_attn_varlen_backward",
    ),
}  # fmt: skip
SGLANG_WRAPPER = "sglang/kernels/ops/attention/flash_attention_v3.py"
LMDEPLOY_FA3 = "lmdeploy.pytorch.third_party.flash_attn_interface"
LMDEPLOY_ATTENTION = "lmdeploy.pytorch.backends.cuda.attention"
INT = torch.int32


@pytest.fixture(scope="module")
def vllm() -> dict[str, str]:
    return texts(VLLM, WRAPPER, *CALLERS, *GATHERERS)


def calls(text: str, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name:
            yield node


@pytest.mark.parametrize("path", CALLERS)
def test_every_call_of_vllm_binds(vllm: dict[str, str], path: str) -> None:
    bound = 0
    for name in ("flash_attn_varlen_func", "get_scheduler_metadata"):
        signature = inspect.signature(getattr(vllm_interface, name))
        for call in calls(vllm[path], name):
            named = {keyword.arg: keyword.arg for keyword in call.keywords if keyword.arg is not None}
            assert len(call.args) <= 3 or name == "get_scheduler_metadata", "what follows q, k and v has another order"
            signature.bind_partial(*call.args, **named)
            bound += 1
    assert bound == CALLERS[path]


def test_what_vllm_gathers_for_a_call_is_taken(vllm: dict[str, str]) -> None:
    taken = set(inspect.signature(vllm_interface.flash_attn_varlen_func).parameters)
    prefill, sparse = (vllm[path] for path in GATHERERS)
    named = {
        keyword.arg
        for name in ("_FA4_MLA_PREFILL_KERNEL", "_flash_attn_varlen_diff_headdims")
        for call in calls(prefill, name)
        for keyword in call.keywords
        if keyword.arg not in (None, "runtime_kernel")  # the latter is the function itself
    }
    named |= {  # kwargs["out"] = out
        node.slice.value
        for node in ast.walk(ast.parse(prefill))
        if isinstance(node, ast.Subscript)
        and ast.unparse(node.value) == "kwargs"
        and isinstance(node.slice, ast.Constant)
    }
    assert {"q", "out", "return_softmax_lse", "max_seqlen_k"} <= named <= taken
    gathered = [
        {key.value for key in node.keys if isinstance(key, ast.Constant)}
        for node in ast.walk(ast.parse(sparse))
        if isinstance(node, ast.Dict)
        and any(isinstance(key, ast.Constant) and key.value == "fa_version" for key in node.keys)
    ]
    assert gathered and all(names <= taken for names in gathered)


def test_vllms_wrapper_has_no_argument_that_ours_lacks(vllm: dict[str, str]) -> None:
    functions = {node.name: node for node in ast.parse(vllm[WRAPPER]).body if isinstance(node, ast.FunctionDef)}
    for name in ("flash_attn_varlen_func", "get_scheduler_metadata"):
        theirs = {argument.arg for argument in functions[name].args.args}
        assert theirs <= set(inspect.signature(getattr(vllm_interface, name)).parameters)


# -- SGLang


def test_every_call_of_sglangs_for_flash_attention_2_binds() -> None:
    for path, text in texts(SGLANG, *SGLANG_FA2).items():
        for name in SGLANG_FA2[path]:
            found = list(calls(text, name))
            for call in found:
                named = {keyword.arg: None for keyword in call.keywords if keyword.arg is not None}
                inspect.signature(getattr(fa2, name)).bind(*call.args, **named)
            assert found


def put(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> ModuleType:
    """A module of that name with these contents in sys.modules, and empty ones for its parents."""
    parts = name.split(".")
    for parent in (".".join(parts[:depth]) for depth in range(1, len(parts))):
        if parent not in sys.modules:
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    module = ModuleType(name)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def sglang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Its own wrapper. Faked: what it imports of SGLang, a GPU of 9.0, and a `kernels` library where none is."""
    text = texts(SGLANG, SGLANG_WRAPPER)[SGLANG_WRAPPER]
    off = SimpleNamespace(get=lambda: False)
    folder = SimpleNamespace(get=lambda: str(tmp_path))
    envs = SimpleNamespace(SGLANG_USE_SGL_FA3_KERNEL=off, SGLANG_CACHE_DIR=folder)
    put(monkeypatch, "sglang.kernels.jit.utils", cache_once=functools.cache)
    put(monkeypatch, "sglang.kernels.kernel_api_logging", debug_kernel_api=lambda function: function)
    put(monkeypatch, "sglang.srt.environ", envs=envs)
    put(monkeypatch, "sglang.srt.utils", get_device_capability=lambda: (9, 0), is_musa=lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    wrapper = ModuleType("sglang_flash_attention_v3")
    exec(compile(text, SGLANG_WRAPPER, "exec"), vars(wrapper))
    activate(OverrideConfig(stand_in=True, quiet=True))
    yield wrapper
    deactivate()
    sys.modules.pop("kernels", None)


def test_sglang_gets_our_kernel_by_its_name(sglang: ModuleType) -> None:
    loaded = sglang._load_fa3_kernels()
    assert loaded["flash_attn_with_kvcache"] is sgl_interface.flash_attn_with_kvcache
    assert loaded["flash_attn_varlen_func"] is sgl_interface.flash_attn_varlen_func


def test_sglangs_decode_and_prefill(sglang: ModuleType) -> None:
    pages, table = torch.randn(2, 6, 4, 2, 16), torch.tensor([[5, 1], [0, 3]], dtype=INT)
    lengths, cu, sinks = torch.tensor([7, 3], dtype=INT), torch.tensor([0, 1, 3], dtype=INT), torch.randn(4)
    q = torch.randn(3, 4, 16)
    given: dict[str, Any] = {"page_table": table, "causal": True, "softmax_scale": 0.25, "window_size": (3, 0)}
    right, lse, *_ = fa3.flash_attn_with_kvcache(
        q, *pages, cache_seqlens=lengths, cu_seqlens_q=cu, max_seqlen_q=2, s_aux=sinks, return_softmax_lse=True, **given
    )
    out = torch.empty_like(q)
    decode = sglang.flash_attn_with_kvcache(
        q, *pages, cache_seqlens=lengths, cu_seqlens_q=cu, max_seqlen_q=2, sinks=sinks, return_softmax_lse=True,
        out=out, **given,
    )  # fmt: skip
    assert decode[0] is out
    prefill = sglang.flash_attn_varlen_func(
        q, *pages, cu, None, 2, 8, seqused_k=lengths, sinks=sinks, return_softmax_lse=True, **given
    )
    for found in (decode, prefill):
        torch.testing.assert_close(found[0], right)
        torch.testing.assert_close(found[1], lse)
    plain = sglang.flash_attn_varlen_func(q, *pages, cu, None, 2, 8, seqused_k=lengths, **given)
    assert isinstance(plain, Tensor) and not torch.equal(plain, right)


def test_on_a_gb10_sglangs_packed_function_takes_flash_attention_2(
    sglang: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its dense models and audio call this one; the cache's function and its vision models refuse 12.1."""
    monkeypatch.setitem(vars(sglang), "get_device_capability", lambda: (12, 1))
    monkeypatch.setitem(sys.modules, "flash_attn", fa2)  # as by `run --as flash_attn`
    q, k, v = torch.randn(14, 4, 16), torch.randn(14, 2, 16), torch.randn(14, 2, 16)
    cu, given = torch.tensor([0, 5, 14], dtype=INT), {"causal": True, "window_size": (3, 0), "softcap": 5.0}
    right = fa3.flash_attn_varlen_func(q, k, v, cu, cu, 9, 9, return_attn_probs=True, **given)
    packed = sglang.flash_attn_varlen_func(q, k, v, cu, cu, 9, 9, return_softmax_lse=True, **given)
    torch.testing.assert_close(packed[:2], right)
    dense = sglang.flash_attn_varlen_func(q[None], k[None], v[None], None, None, **given)
    torch.testing.assert_close(dense, fa3.flash_attn_func(q[None], k[None], v[None], **given))
    with pytest.raises(NotImplementedError):
        sglang.flash_attn_with_kvcache(q[:, None], k[:, None], v[:, None])


def test_sglangs_scores_of_qv_alone(sglang: ModuleType) -> None:
    values, qv = torch.randn(2, 8, 1, 32), torch.randn(2, 1, 4, 32)
    lengths = torch.tensor([8, 5], dtype=INT)
    found = sglang.flash_attn_with_kvcache(
        torch.zeros(2, 1, 4, 0), None, values, qv=qv, cache_seqlens=lengths, softmax_scale=0.1, only_qv=True
    )
    keys = torch.zeros(2, 8, 1, 16)
    right = fa3.flash_attn_with_kvcache(
        torch.zeros(2, 1, 4, 16), keys, values, qv=qv, cache_seqlens=lengths, softmax_scale=0.1
    )
    torch.testing.assert_close(found, right)


# -- LMDeploy


class Flattens:
    """LMDeploy's attention in Triton, of which that for FlashAttention-3 takes the caches laid flat.

    Behind the last key there is room for a page, which LMDeploy leaves as it was.
    """

    __class_getitem__ = classmethod(lambda cls, _: cls)

    def __init__(self, **given: Any) -> None:
        vars(self).update(given)

    def flatten_kv_cache(
        self, k: Tensor, v: Tensor, lengths: Tensor, table: Tensor, *, out_size: int, **_: Any
    ) -> list[Tensor]:
        flat = []
        for pages in (k, v):
            rows = [pages[row].flatten(0, 1)[:length] for row, length in zip(table, lengths.tolist(), strict=True)]
            used = torch.cat(rows)
            flat.append(torch.cat([used, used.new_full((out_size - len(used), *used.shape[1:]), torch.nan)]))
        return flat


@pytest.fixture
def lmdeploy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Its own file. Faked: what it imports of LMDeploy, but for the lines that import FlashAttention-3; a GB10."""
    names = (LMDEPLOY_FA3, f"{LMDEPLOY_ATTENTION}.fa3", f"{LMDEPLOY_ATTENTION}.__init__")
    ours, attention, chooses = texts(LMDEPLOY, *(f"{name.replace('.', '/')}.py" for name in names)).values()
    log = SimpleNamespace(debug=pytest.fail)
    put(monkeypatch, "lmdeploy.messages", QuantPolicy=SimpleNamespace(TURBO_QUANT=1))
    put(monkeypatch, "lmdeploy.utils", get_logger=lambda _: log)
    put(monkeypatch, "lmdeploy.pytorch.backends.cuda.step_metadata", CudaAttentionMetaBuilder=Flattens)
    put(
        monkeypatch, f"{LMDEPLOY_ATTENTION}.default", TritonAttentionImpl=Flattens, TritonAttentionMetadata=None,
        _cdiv=lambda a, b: -(-a // b),
    )  # fmt: skip
    exec(ours, vars(put(monkeypatch, LMDEPLOY_FA3)))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (12, 1))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (choice,) = [node for node in ast.parse(chooses).body if isinstance(node, ast.Try)]
    chosen: dict[str, Any] = {"torch": torch, "logger": log}
    exec(compile(ast.Module(body=[choice], type_ignores=[]), LMDEPLOY_ATTENTION, "exec"), chosen)
    assert chosen["use_fa3"] is True
    file = put(monkeypatch, f"{LMDEPLOY_ATTENTION}.fa3", __package__=LMDEPLOY_ATTENTION)
    exec(attention, vars(file))
    return file


@pytest.mark.parametrize("window", [None, (16, 16)])
def test_lmdeploys_prefill_and_speculative_decoding(lmdeploy: ModuleType, window: tuple[int, int] | None) -> None:
    page, used = 8, (21, 5)
    table, lengths = torch.tensor([[4, 0, 3], [2, 1, 1]], dtype=INT), torch.tensor(used, dtype=INT)
    caches = torch.randn(2, 6, page, 2, 16)
    per_row = [[pages[row].flatten(0, 1)[:n] for row, n in zip(table, used, strict=True)] for pages in caches]
    layer = lmdeploy.FA3Impl(num_heads=4, head_size=16, scale=0.25, num_kv_heads=2, sliding_window=window)
    meta = SimpleNamespace(
        block_offsets=table, kv_start_loc=None, kv_seqlens=lengths, kv_flatten_size=sum(used), max_kv_seqlen=max(used),
        quant_policy=0,
    )  # fmt: skip
    for decodes, new in ((False, (7, 5)), (True, (3, 3))):
        q = torch.randn(sum(new), 4, 16)
        meta.is_decoding, meta.q_seqlens = decodes, torch.tensor(new, dtype=INT)
        meta.cu_seqlens_q = torch.tensor([0, new[0], sum(new)], dtype=INT)
        meta.cu_seqlens_k = torch.tensor([0, used[0], sum(used)], dtype=INT)
        if decodes:  # a CUDA graph has a copy of the plan, in a longer buffer
            step = SimpleNamespace(model_config=SimpleNamespace(block_size=page, dtype=q.dtype), input_ids=q[:, 0].t())
            plan = lmdeploy.build_fa3_metadata(
                meta, step, num_heads_q=4, num_heads_kv=2, head_size=16, sliding_window=window
            ).scheduler_metadata
            layer._get_scheduler_metadata = lambda _, plan=plan: torch.cat([plan, plan])[: len(plan)]
        found = layer.forward(q, None, None, *caches, meta).reshape(q.shape)
        right = [
            plain(*(x[None] for x in row), causal=True, window=window or (-1, -1))[0]
            for row in zip(q.split(new), *per_row, strict=True)
        ]
        torch.testing.assert_close(found.double(), torch.cat(right), atol=1e-5, rtol=1e-5)
