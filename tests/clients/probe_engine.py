"""Run inside an environment with TransformerEngine's Python files: its own detection block and argument builder.

TransformerEngine cannot be imported without CUDA, so pieces of its source are cut out and executed as they stand:
the `try` that looks for flash-attn-3, and `get_fa_args`, which builds the positional arguments of the private
functions. A third, in the middle of a function, says on which devices it goes on with FlashAttention-3. The last line
of output is JSON.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as get_pkg_version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from packaging.version import Version


def source(name: str) -> str:
    spec = importlib.util.find_spec("transformer_engine")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "pytorch" / "attention" / "dot_product_attention"
    return (folder / name).read_text(encoding="utf-8")


def piece(text: str, wanted: type[ast.stmt], words: str) -> Any:
    """The compiled top-level statement of that kind that holds these words."""
    (node,) = [
        node
        for node in ast.parse(text).body
        if isinstance(node, wanted) and words in (ast.get_source_segment(text, node) or "")
    ]
    return compile(ast.Module(body=[node], type_ignores=[]), "transformer_engine", "exec")


def goes_on(capability: tuple[int, int]) -> bool:
    """True if TransformerEngine's choice of a backend considers FlashAttention-3 on a device of that capability."""
    ifs = [node for node in ast.walk(ast.parse(source("utils.py"))) if isinstance(node, ast.If)]
    (gate,) = [node for node in ifs if ast.unparse(node.test) == "device_compute_capability != (9, 0)"]
    names: dict[str, Any] = {
        "device_compute_capability": capability,
        "use_flash_attention_3": True,
        "FlashAttentionUtils": SimpleNamespace(v3_is_installed=False),  # it only says so in its log
    }
    exec(compile(ast.Module(body=[gate], type_ignores=[]), "transformer_engine", "exec"), names)
    return bool(names["use_flash_attention_3"])


def main() -> None:
    utils = SimpleNamespace(set_flash_attention_3_params=lambda: None)
    names: dict[str, Any] = {
        "fa_utils": utils,
        "PkgVersion": Version,
        "get_pkg_version": get_pkg_version,
        "PackageNotFoundError": PackageNotFoundError,
        "inspect": inspect,
    }
    exec(piece(source("backends.py"), ast.Try, "fa_utils.fa3_version ="), names)
    exec(piece(source("context_parallel.py"), ast.FunctionDef, "def get_fa_args("), names)
    build = names["get_fa_args"]
    q, k, v = (torch.randn(2, 6, 4, 16) for _ in range(3))
    shared = {"softmax_scale": 0.25, "causal": True, "window_size_left": -1, "window_size_right": 0}
    arguments = build(True, True, "bshd", max_seqlen_q=6, max_seqlen_kv=6)
    out, lse, *_ = names["_flash_attn_fwd_v3"](q, k, v, *arguments, **shared)
    gradients = [torch.full_like(x, float("nan")) for x in (q, k, v)]
    dq, dk, dv = gradients
    dout = torch.randn_like(out)
    arguments = build(False, True, "bshd", max_seqlen_q=6, max_seqlen_kv=6, dq=dq, dk=dk, dv=dv)
    shared["is_causal"] = shared.pop("causal")
    names["_flash_attn_bwd_v3"](dout, q, k, v, out, lse, *arguments, **shared)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    public = names["flash_attn_func_v3"](*leaves, softmax_scale=0.25, causal=True)
    right = torch.autograd.grad(public, leaves, dout)
    report = {
        "version": str(utils.fa3_version),
        "softcap": utils.fa3_supports_softcap,
        "devices": [goes_on((9, 0)), goes_on((12, 1))],
        "out": float((out - public).abs().max()),
        "gradients": max(float((a - b).abs().max()) for a, b in zip(gradients, right, strict=True)),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
