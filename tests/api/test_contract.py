"""Names, order, defaults, schemas and return shapes against the contract, word by word."""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

import pytest
import torch

import flash_attn3_sm121
from flash_attn3_sm121.api import interface
from flash_attn3_sm121.call import schemas
from tests.fakes.dropin import python

DROPIN = Path(flash_attn3_sm121.__file__).parent / "_dropin"
TAIL = (
    "softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1), "
    "attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0, "
    "return_attn_probs=False, s_aux=None"
)
SIGNATURES = {
    "flash_attn_func": f"q, k, v, {TAIL}",
    "flash_attn_varlen_func": (
        "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None, " + TAIL
    ),
    "flash_attn_qkvpacked_func": (
        "qkv, softmax_scale=None, causal=False, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1), "
        "attention_chunk=0, softcap=0.0, deterministic=False, num_heads_q=None, sm_margin=0, return_attn_probs=False"
    ),
    "flash_attn_with_kvcache": (
        "q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, "
        "cache_batch_idx=None, cache_leftpad=None, page_table=None, cu_seqlens_q=None, cu_seqlens_k_new=None, "
        "max_seqlen_q=None, rotary_seqlens=None, q_descale=None, k_descale=None, v_descale=None, softmax_scale=None, "
        "causal=False, window_size=(-1, -1), attention_chunk=0, softcap=0.0, rotary_interleaved=True, "
        "scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0, return_softmax_lse=False, s_aux=None"
    ),
    "flash_attn_combine": "out_partial, lse_partial, out=None, out_dtype=None",
    "get_scheduler_metadata": (
        "batch_size, max_seqlen_q, max_seqlen_k, num_heads_q, num_heads_kv, headdim, cache_seqlens, "
        "qkv_dtype=torch.bfloat16, headdim_v=None, cu_seqlens_q=None, cu_seqlens_k_new=None, cache_leftpad=None, "
        "page_size=None, max_seqlen_k_new=0, causal=False, window_size=(-1, -1), attention_chunk=0, "
        "has_softcap=False, num_splits=0, pack_gqa=None, sm_margin=0"
    ),
}


def spelled(function: object) -> str:
    assert callable(function)
    parameters = inspect.signature(function).parameters.values()
    assert all(p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in parameters)
    return ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters)


@pytest.mark.parametrize("name", SIGNATURES)
@pytest.mark.parametrize("module", ["flash_attn_interface", "flash_attn_3.flash_attn_interface", "flash_attn3_sm121"])
def test_signature(module: str, name: str) -> None:
    assert spelled(getattr(importlib.import_module(module), name)) == SIGNATURES[name]


@pytest.mark.parametrize(("name", "count"), [("_flash_attn_forward", 34), ("_flash_attn_backward", 22)])
@pytest.mark.parametrize("module", ["flash_attn_interface", "flash_attn_3.flash_attn_interface"])
def test_private_functions_have_upstreams_number_of_arguments(module: str, name: str, count: int) -> None:
    parameters = list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    assert len(parameters) == count
    if name == "_flash_attn_backward":
        assert parameters[12:15] == ["dq", "dk", "dv"]


def test_package_hands_out_the_interface_module() -> None:
    assert flash_attn3_sm121.flash_attn_interface is interface
    assert set(SIGNATURES) < set(dir(flash_attn3_sm121))
    with pytest.raises(AttributeError, match="has no attribute 'flash_attn_kvpacked_func'"):
        _ = flash_attn3_sm121.flash_attn_kvpacked_func  # type: ignore[attr-defined]


def test_submodules_never_shadow_public_names() -> None:
    """`from flash_attn3_sm121.NAME import ...` sets an attribute NAME on the package: it must not be a function's."""
    package = Path(flash_attn3_sm121.__file__).parent
    modules = {path.stem for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    assert not modules & set(flash_attn3_sm121.__all__)


RESULTS = {"fwd": 4, "bwd": 5, "fwd_combine": 2, "get_scheduler_metadata": 1}
COUNTS = {"fwd": 34, "bwd": 22, "fwd_combine": 4, "get_scheduler_metadata": 24}


@pytest.mark.parametrize("name", RESULTS)
def test_public_op_is_what_the_table_says(name: str) -> None:
    schema = getattr(torch.ops.flash_attn_3, name).default._schema
    assert str(torch._C.parse_schema(f"flash_attn_3::{name}{schemas.PUBLIC[name]}")) == str(schema)
    assert (len(schema.arguments), len(schema.returns)) == (COUNTS[name], RESULTS[name])


def test_public_ops_carry_upstreams_alias_marks() -> None:
    def written(name: str) -> tuple[set[str], list[bool]]:
        schema = getattr(torch.ops.flash_attn_3, name).default._schema
        marked = {a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write}
        return marked, [r.alias_info is not None for r in schema.returns]

    assert written("fwd") == ({"k_new", "v_new", "out"}, [True, False, False, False])
    assert written("bwd") == ({"dq", "dk", "dv"}, [False] * 5)
    assert written("fwd_combine") == ({"out"}, [True, False])


def test_config_module_says_nothing_is_left_out() -> None:
    flags = importlib.import_module("flash_attn_config").CONFIG["build_flags"]
    assert {"FLASHATTENTION_DISABLE_BACKWARD", "FLASHATTENTION_DISABLE_HDIM256", "FLASHATTENTION_DISABLE_FP8"} < set(
        flags
    )
    assert not any(flags.values())


def dropin_distribution() -> Distribution:
    return PathDistribution(DROPIN / "flash_attn_3-3.0.0.dist-info")


def test_distribution_metadata() -> None:
    distribution = dropin_distribution()
    assert (distribution.metadata["Name"], distribution.version) == ("flash_attn_3", "3.0.0")
    assert importlib.import_module("flash_attn_3").__version__ == distribution.version
    top_level = (distribution.read_text("top_level.txt") or "").split()
    assert top_level == ["flash_attn_3", "flash_attn_config", "flash_attn_interface"]


def test_record_lists_every_file_and_nothing_else() -> None:
    listed = {str(path) for path in dropin_distribution().files or ()}
    there = {
        str(path.relative_to(DROPIN))
        for path in DROPIN.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert listed == there


@pytest.mark.parametrize("module", ["flash_attn_3._C"])
def test_extension_module_registers_the_ops(module: str) -> None:
    importlib.import_module(module)
    assert hasattr(torch.ops.flash_attn_3, "fwd")


def test_the_interface_imports_the_package_as_upstreams_does() -> None:
    """xDiT 0.7 puts an empty module into sys.modules where there is none, and then find_spec raises in transformers."""
    done = python("-c", "import sys, flash_attn_interface; print(sys.modules['flash_attn_3'].__spec__.name)")
    assert done.stdout.strip() == "flash_attn_3", done.stderr
