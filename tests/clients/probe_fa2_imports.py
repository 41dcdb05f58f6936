"""Run inside an environment with a program that cannot be imported without CUDA: its own look for flash_attn.

Cut out of its source and executed as it stands: Unsloth's detection, which decides HAS_FLASH_ATTENTION, or
TransformerEngine's `try` that imports flash_attn's private functions. Faked: torch's answers about a device. The last
line of output is JSON.
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


if __name__ == "__main__":
    print(json.dumps({"unsloth": unsloth, "transformer_engine": transformer_engine}[sys.argv[1]]()))
