"""Run inside an environment with a program: its own look for `flash_attn`, and diffusers' calls.

Unsloth and TransformerEngine cannot be imported without CUDA. Cut out of their sources and executed as they stand:
Unsloth's detection, which decides HAS_FLASH_ATTENTION, and TransformerEngine's `try` that imports private functions.
Faked: torch's answers about a device. The last line of output is JSON.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as get_pkg_version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from packaging.version import Version


def piece(package: str, path: str, words: str) -> Any:
    """The compiled top-level statement of a package's file that holds these words."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    text = (Path(spec.submodule_search_locations[0]) / path).read_text(encoding="utf-8")
    (node,) = [
        node
        for node in ast.parse(text).body
        if isinstance(node, (ast.If, ast.Try)) and words in (ast.get_source_segment(text, node) or "")
    ]
    return compile(ast.Module(body=[node], type_ignores=[]), package, "exec")


def unsloth() -> dict[str, Any]:
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.get_device_capability = lambda *_: (12, 1)
    names: dict[str, Any] = {
        "torch": torch,
        "Version": Version,
        "DEVICE_TYPE": "cuda",
        "HAS_FLASH_ATTENTION": False,
        "_cache_device_capability": lambda function: function,
        "cuda_bf16_capability": lambda: (12, 1),
        "distributed_launch": lambda: True,
        "_package_available": lambda name: importlib.util.find_spec(name) is not None,
    }
    exec(piece("unsloth", "models/_utils.py", "HAS_FLASH_ATTENTION_SOFTCAPPING = Version("), names)
    return {
        "found": names["HAS_FLASH_ATTENTION"],
        "softcap": names.get("HAS_FLASH_ATTENTION_SOFTCAPPING", False),
        "gpu": sorted(name for name in vars(names["flash_attn_gpu"]) if name.endswith(("fwd", "bwd", "kvcache"))),
    }


def transformer_engine() -> dict[str, Any]:
    utils = SimpleNamespace(
        is_installed=False,
        version_required=Version("2.1.1"),
        is_version_supported=lambda version, least: least <= version < Version("2.8.4"),
        set_flash_attention_version=lambda: None,
    )
    names: dict[str, Any] = {
        "torch": torch,
        "fa_utils": utils,
        "PkgVersion": Version,
        "get_pkg_version": get_pkg_version,
        "PackageNotFoundError": PackageNotFoundError,
    }
    path = "pytorch/attention/dot_product_attention/backends.py"
    exec(piece("transformer_engine", path, "from flash_attn_2_cuda import"), names)
    return {"found": utils.is_installed, "names": sorted(name for name in names if "flash_attn" in name)}


def diffusers() -> dict[str, Any]:
    """Its backend "flash": the call, and the pair of functions under its context parallelism."""
    from diffusers.models import attention_dispatch as dispatch
    from probe_diffusers import far, reference

    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 12, 4, 16, requires_grad=True) for _ in range(3))
    expected = reference(q, k, v, True)
    grad = torch.randn_like(expected)
    right = torch.autograd.grad(expected, (q, k, v), grad)
    dispatch._check_attention_backend_requirements(dispatch.AttentionBackendName.FLASH)
    called, lse = dispatch._flash_attention(q, k, v, is_causal=True, return_lse=True)
    gaps = [far(called, expected), *map(far, torch.autograd.grad(called, (q, k, v), grad), right)]
    context = SimpleNamespace(save_for_backward=lambda *tensors: setattr(context, "saved_tensors", tensors))
    q, k, v = (x.detach() for x in (q, k, v))
    out, _ = dispatch._flash_attention_forward_op(context, q, k, v, is_causal=True, return_lse=True)
    gaps += [far(out, expected), *map(far, dispatch._flash_attention_backward_op(context, grad)[:3], right)]
    return {"found": dispatch._CAN_USE_FLASH_ATTN, "lse": list(lse.shape), "gap": max(gaps)}


if __name__ == "__main__":
    programs = {"unsloth": unsloth, "transformer_engine": transformer_engine, "diffusers": diffusers}
    print(json.dumps(programs[sys.argv[1]]()))
