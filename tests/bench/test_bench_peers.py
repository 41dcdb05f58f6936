"""FlashInfer, SageAttention, cuDNN's frontend and torch's varlen: stand-ins with their signatures are asked rightly."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import flash_attn3_sm121 as fa3
from flash_attn3_sm121.bench.case import build
from flash_attn3_sm121.bench.check import check_results, reference
from flash_attn3_sm121.bench.contenders import Contender, Refused, peers
from tests.bench.samples import TINY, dense

CPU = torch.device("cpu")
PAGED = dense(kind="paged", batch=2, q_len=1, k_len=512, page_size=256, lengths=(300, 18), heads=4)


def offer(monkeypatch: pytest.MonkeyPatch, package: str, **members: Any) -> None:
    module = ModuleType(package)
    vars(module).update(members)
    monkeypatch.setattr(peers, "load", {package: module}.__getitem__)


def judge(contender: Contender, name: str) -> None:
    case = build(PAGED if name == "paged" else TINY[name], CPU)
    assert check_results(contender.prepare(case)(), reference(case), "fp32").why is None


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor | None, max_q: int, max_k: int, *,
    window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False, seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
) -> Tensor:  # fmt: skip
    assert enable_gqa or query.shape[-2] == key.shape[-2]
    if cu_seq_k is None:
        rows = query.view(len(cu_seq_q) - 1, -1, *query.shape[1:])
        more = {"page_table": block_table, "cache_seqlens": seqused_k, "window_size": window_size}
        out: Tensor = fa3.flash_attn_with_kvcache(rows, key, value, **more)
        return out.flatten(0, 1)
    out = fa3.flash_attn_varlen_func(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, seqused_k=seqused_k, window_size=window_size
    )
    return out


@pytest.mark.parametrize("name", [*TINY])
def test_torch_varlen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "torch.nn.attention.varlen", varlen_attn=_varlen)
    judge(peers.TorchVarlen(), name)


def test_an_old_torch_varlen_and_small_pages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "torch.nn.attention.varlen", varlen_attn=lambda query, key, value, is_causal: None)
    with pytest.raises(Refused, match="no windows"):
        peers.TorchVarlen().prepare(build(TINY["packed"], CPU))
    offer(monkeypatch, "torch.nn.attention.varlen", varlen_attn=_varlen)
    with pytest.raises(Refused, match="multiples of 256"):
        peers.TorchVarlen().prepare(build(TINY["paged"], CPU))


class Ragged:
    def __init__(self, workspace: Tensor, layout: str) -> None:
        assert layout == "NHD" and workspace.dtype == torch.uint8

    def plan(
        self, qo_indptr: Tensor, kv_indptr: Tensor, heads: int, kv_heads: int, dim: int, *, causal: bool,
        window_left: int, q_data_type: torch.dtype, kv_data_type: torch.dtype,
    ) -> None:  # fmt: skip
        self.facts = (qo_indptr, kv_indptr, int(qo_indptr.diff().max()), int(kv_indptr.diff().max()))
        self.mask = {"causal": causal, "window_size": (window_left, 0 if causal else -1)}

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = fa3.flash_attn_varlen_func(q, k, v, *self.facts, **self.mask)
        return out


class Paged:
    def __init__(self, workspace: Tensor, layout: str, use_tensor_cores: bool = False) -> None:
        self.decodes = use_tensor_cores

    def plan(self, *facts: Any, causal: bool = True, window_left: int, **kinds: torch.dtype) -> None:
        *rows, indptr, indices, last, _heads, _kv_heads, _dim, self.size = facts
        assert bool(rows) != self.decodes and len(kinds) == 2
        spans = zip(indptr.tolist()[:-1], indptr.tolist()[1:], strict=True)
        self.pages = [indices[a:b] for a, b in spans]
        self.used = [(len(p) - 1) * self.size + n for p, n in zip(self.pages, last.tolist(), strict=True)]
        self.window = (window_left, 0)

    def run(self, q: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
        rows = q.view(len(self.pages), -1, *q.shape[1:])
        outs = []
        for row, pages, used in zip(rows, self.pages, self.used, strict=True):
            k, v = (x[pages.long()].flatten(0, 1)[:used][None] for x in cache)
            outs.append(fa3.flash_attn_func(row[None], k, v, causal=True, window_size=self.window))
        return torch.cat(outs).flatten(0, 1)


@pytest.mark.parametrize("name", [*TINY])
def test_flashinfer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrappers = {"BatchPrefillWithRaggedKVCacheWrapper": Ragged, "BatchPrefillWithPagedKVCacheWrapper": Paged}
    offer(monkeypatch, "flashinfer", **wrappers, BatchDecodeWithPagedKVCacheWrapper=Paged)
    if TINY[name].backward:
        with pytest.raises(Refused, match="no backward"):
            judge(peers.FlashInfer(), name)
        return
    judge(peers.FlashInfer(), name)


def test_sage_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def sageattn(q: Tensor, k: Tensor, v: Tensor, *, tensor_layout: str, is_causal: bool) -> Tensor:
        assert tensor_layout == "NHD"
        out: Tensor = fa3.flash_attn_func(q, k, v, causal=is_causal)
        return out

    offer(monkeypatch, "sageattention", sageattn=sageattn)
    for name in ("causal", "full", "gqa"):
        judge(peers.SageAttention(), name)
    with pytest.raises(Refused, match="dense calls"):
        judge(peers.SageAttention(), "window")


class Result:
    def same(self, _: object) -> Result:
        return self

    set_output = set_dim = set_stride = same


class Graph:
    def __init__(self, **kinds: Any) -> None:
        assert kinds == {"io_data_type": "fp32", "intermediate_data_type": "fp32", "compute_data_type": "fp32"}
        self.built = False

    def tensor_like(self, tensor: Tensor) -> object:
        return object()

    def sdpa(self, *, attn_scale: float, use_causal_mask: bool, is_inference: bool, **tensors: object) -> Any:
        self.names, self.causal, self.scale = tensors, use_causal_mask, attn_scale
        self.out = Result()
        return self.out, None

    def build(self, modes: list[str]) -> None:
        self.built = True

    def get_workspace_size(self) -> int:
        return 4

    def execute(self, pack: dict[Any, Tensor], workspace: Tensor) -> None:
        assert self.built and workspace.numel() == 4
        q, k, v = (pack[self.names[name]].transpose(1, 2) for name in ("q", "k", "v"))
        out = fa3.flash_attn_func(q, k, v, causal=self.causal, softmax_scale=self.scale)
        pack[self.out].copy_(out.transpose(1, 2))


def test_cudnn_frontend(monkeypatch: pytest.MonkeyPatch) -> None:
    modes, kinds = SimpleNamespace(A="a", FALLBACK="b"), SimpleNamespace(FLOAT="fp32")
    offer(monkeypatch, "cudnn", pygraph=Graph, heur_mode=modes, data_type=kinds)
    monkeypatch.delenv(peers.FROST, raising=False)
    with pytest.raises(Refused, match=f"{peers.FROST}=1"):
        judge(peers.CudnnFrontend(), "causal")
    monkeypatch.setenv(peers.FROST, "1")
    for name in ("causal", "full", "gqa"):
        judge(peers.CudnnFrontend(), name)


@pytest.mark.parametrize("contender", [peers.FlashInfer(), peers.SageAttention(), peers.CudnnFrontend()])
def test_a_package_that_is_not_here_is_a_reason(contender: Contender, monkeypatch: pytest.MonkeyPatch) -> None:
    package = {"flashinfer": "flashinfer", "sage-attention": "sageattention", "cudnn-frontend": "cudnn"}[contender.name]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Refused, match=f"{package} .*(is not installed|cannot be imported|spec)"):
        contender.prepare(build(TINY["causal"], CPU))
