"""vLLM's own attention backend and its registry, out of its wheel, over our functions.

Faked: what these two files import of vLLM, whose engine wants a GPU, and the layer's write into the cache, which is a
CUDA op of its own. The profile of a call is vLLM's: new tokens of each row against pages of a cache.
"""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import flash_attn3_sm121 as fa3
from ci.wheel import metadata
from flash_attn3_sm121.errors import BackendError, CallError
from flash_attn3_sm121.hub import vllm_backend
from tests.clients.envs import VLLM, texts

pytestmark = pytest.mark.network
ROOT = Path(__file__).parents[2]
FILES = [f"vllm/v1/attention/backends/{name}.py" for name in ("flash_attn", "registry")]
FP8 = torch.float8_e4m3fn
HEADS, HEADS_KV, DIM, PAGE = 4, 2, 16, 16


class Base:
    """Any class of vLLM's that is inherited from, subscripted or made without being looked at."""

    dcp_world_size = 1

    def __class_getitem__(cls, _: Any) -> type:
        return cls


def logger(_: str) -> Any:
    return SimpleNamespace(**dict.fromkeys(("debug", "info_once", "warning_once"), logging.getLogger("vllm").debug))


REAL = {
    "current_platform": SimpleNamespace(is_xpu=lambda: False, fp8_dtype=lambda: FP8),
    "canonicalize_singleton_dim_strides": lambda tensor: tensor,
    "is_quantized_kv_cache": lambda name: name.startswith("fp8"),
    "is_flash_attn_varlen_func_available": lambda: True,
    "get_flash_attn_version": lambda **_: 2,
    "flash_attn_supports_quant_query_input": lambda: True,
    "uses_fa4_hd256_kernel": lambda *_: False,
    "get_current_vllm_config_or_none": lambda: None,
    "resolve_obj_by_qualname": lambda name: importlib.import_module(name.rpartition(".")[0]).Backend,
    "AttentionType": SimpleNamespace(DECODER="decoder", ENCODER="encoder", ENCODER_ONLY="only", ENCODER_DECODER="both"),
    "AttentionCGSupport": SimpleNamespace(ALWAYS=3, UNIFORM_BATCH=2),
    "VLLM_BATCH_INVARIANT": False,
    "init_logger": logger,
}


class Faked(ModuleType):
    """A module of vLLM's: the names above, and an empty class for any other."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return REAL.get(name, Base)


class Finder:
    """Modules of vLLM that are not among the two real files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] != "vllm" or f"{name.replace('.', '/')}.py" in FILES:
            return None
        spec = importlib.machinery.ModuleSpec(name, self, is_package=True)
        spec.submodule_search_locations = [str(self.folder.joinpath(*name.split(".")))]
        return spec

    def create_module(self, spec: Any) -> ModuleType:
        return Faked(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    return texts(VLLM, *FILES)


@pytest.fixture
def backend(files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What vLLM finds under CUSTOM, by our entry point and its registry."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "meta_path", [Finder(tmp_path), *sys.meta_path])
    before = set(sys.modules)
    vllm_backend._backend.cache_clear()
    vllm_backend.register()
    registry = importlib.import_module("vllm.v1.attention.backends.registry")
    yield registry.AttentionBackendEnum.CUSTOM.get_class()
    for name in set(sys.modules) - before:
        if name.startswith(("vllm", vllm_backend.COPY)):
            del sys.modules[name]


def scales() -> Any:
    one = torch.ones(1)
    return SimpleNamespace(_q_scale=one * 0.5, _k_scale=one * 2.0, _v_scale=one * 0.25)


@pytest.mark.parametrize("dtype", [torch.float16, FP8], ids=["fp16", "fp8"])
@pytest.mark.parametrize(("window", "cap", "sinks"), [(None, 0.0, False), (5, 20.0, False), (5, 0.0, True)])
@pytest.mark.parametrize("counts", [[1, 1], [5, 2]], ids=["decode", "prefill"])
def test_a_layer(backend: Any, counts: list[int], window: int | None, cap: float, sinks: bool, dtype: Any) -> None:
    layer, s_aux = scales(), torch.randn(HEADS).bfloat16() if sinks else None
    impl = backend.get_impl_cls()(
        *(HEADS, DIM, 0.25, HEADS_KV, None, window, "fp8" if dtype is FP8 else "auto", cap), sinks=s_aux
    )
    lengths, table = torch.tensor([21, 7], dtype=torch.int32), torch.tensor([[3, 1], [0, 2]], dtype=torch.int32)
    cache = torch.randn(4, HEADS_KV, PAGE, 2 * DIM).to(dtype)
    q, cu = torch.randn(sum(counts), HEADS, DIM).to(dtype), torch.tensor([0, counts[0], sum(counts)], dtype=torch.int32)
    module = sys.modules[vllm_backend.COPY]
    about = module.FlashAttentionMetadata(
        num_actual_tokens=len(q), max_query_len=max(counts), query_start_loc=cu, max_seq_len=21, seq_lens=lengths,
        block_table=table, slot_mapping=torch.empty(0), max_num_splits=32,
    )  # fmt: skip
    out = torch.full(q.shape, torch.nan, dtype=torch.bfloat16 if dtype is FP8 else dtype)
    stored = cache.view(torch.uint8) if dtype is FP8 else cache  # vLLM keeps an fp8 cache as bytes
    assert impl.forward(layer, q, None, None, stored, about, out) is out
    assert not out.isnan().any()

    def read(x: Tensor, scale: Tensor) -> Tensor:
        return (x.float() * scale if dtype is FP8 else x.float())[None]

    for row, (begin, end) in enumerate(zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True)):
        pages = stored[table[row].long()].view(cache.dtype)  # by bytes: torch 2.9 indexes no fp8 on a CPU
        keys = pages.transpose(1, 2).flatten(0, 1)[: lengths[row]]
        k, v = keys.split(DIM, -1)
        right = fa3.flash_attn_func(
            read(q[begin:end], layer._q_scale), read(k, layer._k_scale), read(v, layer._v_scale),
            softmax_scale=0.25, causal=True, window_size=(-1, -1) if window is None else (window - 1, 0),
            softcap=cap, s_aux=s_aux,
        )  # fmt: skip
        torch.testing.assert_close(out[begin:end].float(), right[0].float(), atol=2e-2, rtol=2e-2)


def test_what_vllm_is_told(backend: Any) -> None:
    assert backend.get_name() == "CUSTOM" and backend.supports_sink()
    assert backend.supports_kv_cache_dtype("fp8") and not backend.supports_kv_cache_dtype("fp8_e5m2")
    assert backend.supports_head_size(256) and not backend.supports_head_size(512)
    assert not (backend.supports_rswa() or backend.supports_batch_invariance() or backend.supports_mm_prefix())
    assert backend.get_impl_cls().supports_dcp is False
    with pytest.raises(CallError, match="no ALiBi"):
        backend.get_impl_cls()(HEADS, DIM, 0.25, HEADS_KV, [1.0] * HEADS, None, "auto")


def test_vllms_own_backend_stays(backend: Any) -> None:
    theirs = importlib.import_module(vllm_backend.FILE)
    assert theirs.FlashAttentionBackend.get_name() == "FLASH_ATTN" and not issubclass(
        backend, theirs.FlashAttentionBackend
    )
    assert theirs.get_flash_attn_version() == 2


def test_another_custom_backend_stays(backend: Any) -> None:
    registry = importlib.import_module("vllm.v1.attention.backends.registry")
    registry.register_backend(registry.AttentionBackendEnum.CUSTOM, "another.Backend")
    vllm_backend.register()
    assert registry.AttentionBackendEnum.CUSTOM.get_path() == "another.Backend"


def test_an_older_vllm_starts_as_ever(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    caplog.set_level(logging.INFO)
    vllm_backend.register()
    assert "0.33 is expected" in caplog.text


def test_a_vllm_with_other_names_is_refused(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vllm_backend.OURS, "get_flash_attn_generation", lambda: 3)
    vllm_backend._backend.cache_clear()
    with pytest.raises(BackendError, match="does not call get_flash_attn_generation"):
        vllm_backend._backend()


def test_the_entry_point() -> None:
    (point,) = metadata.read_project(ROOT).entry_points["vllm.general_plugins"].values()
    assert point == f"{vllm_backend.__name__}:register"
