"""Run inside an environment with a program's own file of attention: that file's calls against plain attention.

    python probe_programs.py NAME FOLDER    (the folder that has the program's files)

Faked: what a file imports of its own program, and a GPU: "cuda" was read as "cpu" before. Of ComfyUI's file only what
serves FlashAttention is executed. The last line of output is JSON, the largest difference of each call.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Gaps = dict[str, float]


def plain(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """Attention of tokens first."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), **options).transpose(1, 2)


def far(found: Tensor, right: Tensor) -> float:
    assert found.shape == right.shape
    return float((found.float() - right.float()).abs().max())


def tensors(*lengths: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, length, 4, 32, dtype=dtype) for length in lengths]


def stand_in(name: str, **names: Any) -> None:
    """A module of a program's own, and the packages above it."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        above: Any = sys.modules.setdefault(".".join(parts[:depth]), ModuleType(parts[depth - 1]))
        above.__path__ = list(getattr(above, "__path__", []))
    module = ModuleType(name)
    vars(module).update(names)
    sys.modules[name] = module


def kijai(folder: Path) -> Gaps:
    sys.path.insert(0, str(folder / "wanvideo" / "modules"))
    wan = importlib.import_module("attention")
    q, k, v = tensors(10, 12, 12)
    lengths = wan.flash_attention(q, k, v, k_lens=torch.tensor([12, 12]))
    return {"plain": far(wan.flash_attention(q, k, v), plain(q, k, v)), "lengths": far(lengths, plain(q, k, v))}


def wan2gp(folder: Path) -> Gaps:
    torch.cuda.get_device_capability = lambda *_: (12, 1)
    stand_in("mmgp", offload=SimpleNamespace(shared_state={"_attention": "flash"}))
    sys.path.insert(0, str(folder))
    attention = importlib.import_module("shared.attention")
    q, k, v = tensors(10, 12, 12)
    pair = attention.pay_attention([q, k, v], version=3)
    one = attention.pay_attention([q[:1], k[:1], v[:1]], version=3, k_lens=torch.tensor([7]))
    return {"two": far(pair, plain(q, k, v)), "padded": far(one, plain(q[:1], k[:1, :7], v[:1, :7]))}


def hunyuan(folder: Path) -> Gaps:
    sys.path.insert(0, str(folder / "hyvideo" / "utils"))
    packing = importlib.import_module("flash_attn_no_pad")
    q, k, v = tensors(10, 10, 10)
    mask = torch.arange(10) < torch.tensor([10, 6])[:, None]
    right = plain(q, k, v, attn_mask=mask[:, None, None]) * mask[:, :, None, None]
    qkv = torch.stack((q, k, v), 2)
    calls = {"flash3": packing.flash_attn_no_pad_v3, "flash2": packing.flash_attn_no_pad}
    return {name: far(call(qkv, mask), right) for name, call in calls.items()}


def lightx2v(folder: Path) -> Gaps:
    registered: dict[str, Any] = {}

    def register(name: str) -> Callable[[Any], Any]:
        return lambda cls: registered.setdefault(name, cls)

    here = "lightx2v.common.ops.attn"
    stand_in("lightx2v.utils.registry_factory", ATTN_WEIGHT_REGISTER=register)
    stand_in(f"{here}.template", AttnWeightTemplate=object)
    stand_in(f"{here}.utils.sla_util", get_block_map=None)
    stand_in(f"{here}.utils.sparge_util", block_map_ordinal_lut_triton=None, get_block_map_meansim=None)
    path = folder.joinpath(*here.split("."), "flash_attn.py")
    spec = importlib.util.spec_from_file_location(f"{here}.flash_attn", path)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    q, k, v = tensors(12, 12, 12)
    cu = torch.tensor([0, 12, 24], dtype=torch.int32)
    gaps = {}
    for name in ("flash_attn3", "flash_attn2"):
        weight = registered[name]()
        for label, count in (("one", 1), ("two", 2)):
            given = [x[:count] for x in (q, k, v)]
            found = weight.apply(*given, cu, cu, 12, 12)
            gaps[f"{name} {label}"] = far(found, plain(*given).reshape(count * 12, -1))
        out, lse = weight.apply_with_lse(q, k, v)
        scores = torch.einsum("bihd,bjhd->bihj", q.float(), k.float()) * 32**-0.5
        gaps[f"{name} lse"] = far(lse, scores.logsumexp(-1).reshape(24, 4))
        gaps[f"{name} out"] = far(out, plain(q, k, v).reshape(24, -1))
    return gaps


def comfyui(folder: Path) -> Gaps:
    text = (folder / "comfy" / "ldm" / "modules" / "attention.py").read_text(encoding="utf-8")
    wanted = {"wrap_attn", "attention_flash", "AttentionTensorContainer", "_reshape_qkv_to_heads", "_heads_from_dim"}

    def serves(node: ast.stmt) -> bool:
        if isinstance(node, ast.Try):
            return "flash_attn_func" in ast.unparse(node.body)
        return isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in wanted

    body = [node for node in ast.parse(text).body if serves(node)]
    failures: list[str] = []
    log = SimpleNamespace(warning=failures.append, error=logging.error)
    names: dict[str, Any] = {"torch": torch, "functools": functools, "logging": log, "model_management": None}
    exec(compile(ast.Module(body=body, type_ignores=[]), "comfyui", "exec"), names)
    flash = names["attention_flash"]
    q, k, v = tensors(10, 12, 12)
    flat = [x.flatten(2) for x in (q, k, v)]
    turned = [x.transpose(1, 2) for x in (q, k, v)]
    right = plain(q, k, v)
    gaps = {
        "plain": far(flash(*flat, 4), right.flatten(2)),
        "turned": far(flash(*turned, 4, skip_reshape=True, skip_output_reshape=True), right.transpose(1, 2)),
        "compiled": far(torch.compile(flash, backend="eager", fullgraph=True)(*flat, 4), right.flatten(2)),
    }
    if any("'scale'" in ast.unparse(node) for node in body):  # older files leave it to torch's attention alone
        gaps["scaled"] = far(flash(*flat, 4, scale=0.1), plain(q, k, v, scale=0.1).flatten(2))
    assert not failures, failures  # it goes on with torch's attention after any exception
    return gaps


def xtuner(folder: Path) -> Gaps:
    """Its functions for both generations: packed documents, forward and backward, with and without the compiler."""
    sys.path.insert(0, str(folder / "xtuner" / "v1" / "ops" / "flash_attn"))
    gpu = importlib.import_module("gpu")
    q, k, v = leaves = [x[0].requires_grad_() for x in tensors(12, 12, 12, dtype=torch.float32)]
    cu, longest = torch.tensor([0, 5, 12], dtype=torch.int32), torch.tensor(7)
    documents = [slice(0, 5), slice(5, 12)]
    right = torch.cat([plain(*(x[None, one] for x in leaves), is_causal=True)[0] for one in documents])
    grad = torch.randn_like(right)
    gradients = torch.autograd.grad(right, leaves, grad)
    gaps = {}
    for name in ("gpu_flash_varlen_attn_v3", "flash_attn_varlen_func_v2"):
        eager = getattr(gpu, name)
        compiled = torch.compile(eager, backend="aot_eager", fullgraph=True)
        for how, call in (("eager", eager), ("compiled", compiled)):
            out = call(q, k, v, cu, cu.clone(), longest, longest.clone(), causal=True)
            gaps[f"{name} {how}"] = far(out, right)
            found = torch.autograd.grad(out, leaves, grad)
            gaps[f"{name} {how}, backward"] = max(map(far, found, gradients))
    return gaps


if __name__ == "__main__":
    torch.set_num_threads(1)
    programs = (kijai, wan2gp, hunyuan, lightx2v, comfyui, xtuner)
    wanted = {program.__name__: program for program in programs}[sys.argv[1].removesuffix("-spark")]
    print(json.dumps(wanted(Path(sys.argv[2]))))
