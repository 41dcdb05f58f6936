"""More of other people's kernels: FlashInfer, SageAttention, cuDNN's frontend, and torch's own for packed sequences.

Their packages are not needed here and none has run on a GB10 with this bench: whatever one of them raises is shown.
"""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flash_attn3_sm121.bench.case import Case
from flash_attn3_sm121.bench.contenders.base import Refused, Runner, load, with_backward

FROST = "CUDNN_FRONTEND_ENABLE_FROST_ENGINES"
WORKSPACE = 128 << 20  # bytes, as FlashInfer's documentation has it


def _offsets(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


class TorchVarlen:
    name = "torch-varlen"
    about = "torch.nn.attention.varlen (torch 2.11 and later): FlashAttention 2, or cuDNN on 9.0 and 10.x from 2.14 on"
    devices = frozenset({"cuda"})

    def prepare(self, case: Case) -> Runner:
        attend, work = load("torch.nn.attention.varlen").varlen_attn, case.workload
        if not {"window_size", "seqused_k", "block_table"} <= set(inspect.signature(attend).parameters):
            raise Refused(f"torch {torch.__version__} knows no windows, lengths and pages there")
        if work.kind == "paged" and work.page_size % 256:
            raise Refused(f"its pages must be multiples of 256; these are {work.page_size}")
        window = (work.window, 0 if work.causal else -1)
        grouped = work.heads != work.heads_kv
        cu_q = _offsets(tuple(rows for rows, _ in work.sequences), case.q.device)
        cu_k: Tensor | None = _offsets((work.k_len,) * work.batch, case.q.device)
        longest = max(rows for rows, _ in work.sequences), work.k_len or max(keys for _, keys in work.sequences)
        more: dict[str, Any] = {}
        if work.kind == "packed":
            cu_k = case.cu_seqlens
        elif work.kind == "paged":
            cu_k, more = None, {"block_table": case.page_table}
        if case.cache_seqlens is not None:
            more["seqused_k"] = case.cache_seqlens

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            tokens = [x.flatten(0, 1) if x.dim() == 4 and work.kind != "paged" else x for x in (k, v)]
            out: Tensor = attend(
                q.reshape(-1, *q.shape[-2:]), *tokens, cu_q, cu_k, *longest, window_size=window, enable_gqa=grouped,
                **more,
            )  # fmt: skip
            return out.view(q.shape)

        return with_backward(case, forward)


class FlashInfer:
    name = "flashinfer"
    about = "FlashInfer's batch wrappers, planned once"
    devices = frozenset({"cuda"})
    fp8 = True

    def prepare(self, case: Case) -> Runner:
        module, work = load("flashinfer"), case.workload
        if work.backward:
            raise Refused("it has no backward")
        workspace = torch.empty(WORKSPACE, dtype=torch.uint8, device=case.q.device)
        rows = _offsets(tuple(rows for rows, _ in work.sequences), case.q.device)
        heads = (work.heads, work.heads_kv, work.head_dim)
        kind = {"window_left": work.window, "q_data_type": case.q.dtype, "kv_data_type": case.k.dtype}
        if work.kind in ("dense", "packed"):
            wrapper = module.BatchPrefillWithRaggedKVCacheWrapper(workspace, "NHD")
            keys = _offsets(tuple(keys for _, keys in work.sequences), case.q.device)
            wrapper.plan(rows, keys, *heads, causal=work.causal, **kind)

            def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                out: Tensor = wrapper.run(*(x.reshape(-1, *x.shape[-2:]) for x in (q, k, v)))
                return out.view(q.shape)

            return with_backward(case, forward)
        return with_backward(case, self._cached(case, module, workspace, rows, kind))

    @staticmethod
    def _cached(
        case: Case, module: Any, workspace: Tensor, rows: Tensor, kind: dict[str, Any]
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """A plain cache is one of pages as long as its rows."""
        work = case.workload
        size = work.page_size or work.k_len
        table = case.page_table if case.page_table is not None else torch.arange(work.batch)[:, None]
        counts = tuple(-(-keys // size) for _, keys in work.sequences)
        used = torch.cat([row[:count].to(torch.int32) for row, count in zip(table, counts, strict=True)])
        last = [keys - (count - 1) * size for (_, keys), count in zip(work.sequences, counts, strict=True)]
        device = case.q.device
        pages = (_offsets(counts, device), used.to(device), torch.tensor(last, dtype=torch.int32, device=device))
        heads = (work.heads, work.heads_kv, work.head_dim, size)
        if work.q_len == 1:
            wrapper = module.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
            wrapper.plan(*pages, *heads, **kind)
        else:
            wrapper = module.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
            wrapper.plan(rows, *pages, *heads, causal=work.causal, **kind)

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = wrapper.run(q.reshape(-1, *q.shape[-2:]), (k, v))
            return out.view(q.shape)

        return forward


class SageAttention:
    name = "sage-attention"
    about = "SageAttention (int8 products: its error is larger, and allowed here)"
    devices = frozenset({"cuda"})
    slack = 10.0

    def prepare(self, case: Case) -> Runner:
        module, work = load("sageattention"), case.workload
        if work.kind != "dense" or work.window >= 0 or work.backward:
            raise Refused("it takes dense calls without a window and without a backward only")

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = module.sageattn(q, k, v, tensor_layout="NHD", is_causal=work.causal)
            return out

        return with_backward(case, forward)


class CudnnFrontend:
    name = "cudnn-frontend"
    about = f"cuDNN's frontend with its open kernels ({FROST}=1)"
    devices = frozenset({"cuda"})

    def prepare(self, case: Case) -> Runner:
        module, work = load("cudnn"), case.workload
        if os.environ.get(FROST) != "1":
            raise Refused(f"its open kernels are switched on by {FROST}=1")
        if work.kind != "dense" or work.window >= 0 or work.backward:
            raise Refused("it is asked for dense forward calls without a window only")
        given = [x.transpose(1, 2) for x in (case.q, case.k, case.v)]
        out = torch.empty_like(case.q).transpose(1, 2)
        kind = {torch.bfloat16: "BFLOAT16", torch.float16: "HALF", torch.float32: "FLOAT"}[case.q.dtype]
        kinds, single = module.data_type, module.data_type.FLOAT
        graph = module.pygraph(
            io_data_type=getattr(kinds, kind), intermediate_data_type=single, compute_data_type=single
        )
        q, k, v = (graph.tensor_like(x) for x in given)
        result, _ = graph.sdpa(q=q, k=k, v=v, is_inference=True, attn_scale=case.scale, use_causal_mask=work.causal)
        result.set_output(True).set_dim(list(out.shape)).set_stride(list(out.stride()))
        graph.build([module.heur_mode.A, module.heur_mode.FALLBACK])
        workspace = torch.empty(graph.get_workspace_size(), dtype=torch.uint8, device=case.q.device)
        pack = {q: given[0], k: given[1], v: given[2], result: out}

        def run() -> dict[str, Tensor]:
            graph.execute(pack, workspace)
            return {"out": out.transpose(1, 2)}

        return run
