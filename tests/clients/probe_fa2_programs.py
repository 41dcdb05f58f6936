"""Run inside an environment with a program: its own look for `flash_attn`, and diffusers' calls.

TransformerEngine cannot be imported without CUDA. Cut out of its source and executed as it stands: the `try` that
imports private functions. The last line of output is JSON.
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
    programs = {"transformer_engine": transformer_engine, "diffusers": diffusers}
    print(json.dumps(programs[sys.argv[1]]()))
