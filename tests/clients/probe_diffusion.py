"""Run inside an environment with real programs of images and videos: their functions that call FlashAttention-3.

These packages import large parts of themselves, most of it for a GPU. Executed are the functions named here as they
stand, with the statements that look for `flash_attn_interface`; faked is xDiT's table of what is installed. fp8 is
compared with the same rounded inputs. The last line of output is JSON: each function's largest error.
"""

from __future__ import annotations
import __future__

import ast
import functools
import json
import math
import sys
import typing
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

FP8 = torch.float8_e4m3fn


def taken(package: str, path: str, *wanted: str, **names: Any) -> SimpleNamespace:
    """The functions and classes of a package's file, and its statements that import from FlashAttention-3."""
    text = Path(str(metadata.distribution(package).locate_file(path))).read_text(encoding="utf-8")
    body = [
        node
        for node in ast.parse(text).body
        if (isinstance(node, (ast.Try, ast.If)) and "flash_attn_interface" in ast.unparse(node))
        or getattr(node, "name", None) in wanted
    ]
    names |= {"torch": torch, "functools": functools, "math": math, "rearrange": rearrange}
    flags = __future__.annotations.compiler_flag
    exec(compile(ast.Module(body=body, type_ignores=[]), path, "exec", flags=flags), names)
    return SimpleNamespace(**names)


def far(found: Tensor, *given: Tensor, **options: Any) -> float:
    """The largest difference from torch's own attention in fp32; everything is (b, h, s, d)."""
    right = F.scaled_dot_product_attention(*(x.float() for x in given), **options)
    return float((found.float() - right).abs().max())


def diffsynth(q: Tensor, k: Tensor, v: Tensor) -> dict[str, float]:
    names = ("initialize_attention_priority", "rearrange_qkv", "rearrange_out", "flash_attention_3")
    file = taken(
        "diffsynth", "diffsynth/core/attention/attention.py", *names, os=SimpleNamespace(environ={}),
        CUSTOMIZED_FA_KERNEL_AVAILABLE=False, FLASH_ATTN_4_AVAILABLE=False,
    )  # fmt: skip
    assert file.initialize_attention_priority() == "flash_attention_3"
    heads_first = dict.fromkeys(("q_pattern", "k_pattern", "v_pattern", "out_pattern"), "b n s d")
    places = torch.arange(q.shape[2])
    seen = (places[:, None] - places).abs() <= 3
    qwen = taken("diffsynth", "diffsynth/models/qwen_image_dit.py", "qwen_image_flash_attention")
    assert qwen.FLASH_ATTN_3_AVAILABLE
    rounded = [(x / x.std()).to(FP8).float() * x.std().float() for x in (q, k, v)]

    def by_heads(x: Tensor) -> Tensor:
        return x.unflatten(2, (q.shape[1], -1)).transpose(1, 2)

    return {
        "diffsynth": far(file.flash_attention_3(q, k, v, **heads_first), q, k, v),
        "diffsynth window": far(file.flash_attention_3(q, k, v, **heads_first, window_size=3), q, k, v, attn_mask=seen),
        "qwen": far(by_heads(qwen.qwen_image_flash_attention(q, k, v, q.shape[1])), q, k, v),
        "qwen fp8": far(
            by_heads(qwen.qwen_image_flash_attention(q, k, v, q.shape[1], enable_fp8_attention=True)), *rounded
        ),
    }


def ltx(q: Tensor, k: Tensor, v: Tensor) -> dict[str, float]:
    file = taken(
        "ltx-core", "ltx_core/model/transformer/attention.py", "AttentionCallable", "FlashAttention3",
        Protocol=typing.Protocol, memory_efficient_attention=None,
    )  # fmt: skip
    out = file.FlashAttention3()(*(x.transpose(1, 2).flatten(2) for x in (q, k, v)), q.shape[1])
    return {"ltx-2": far(out.unflatten(2, (q.shape[1], -1)).transpose(1, 2), q, k, v)}


def sam3(q: Tensor, k: Tensor, v: Tensor) -> dict[str, float]:
    text = Path(str(metadata.distribution("sam3").locate_file("sam3/perflib/fa3.py"))).read_text(encoding="utf-8")
    file = sys.modules["fa3"] = ModuleType("fa3")  # there, since the compiler of torch 2.9 imports it
    exec(compile(text, "sam3/perflib/fa3.py", "exec"), vars(file))
    given = [x.transpose(1, 2) for x in (q, k, v)]
    compiled = torch.compile(file.flash_attn_func, backend="aot_eager", fullgraph=True)
    rounded = [x.to(FP8) for x in (q, k, v)]
    return {
        "sam3 fp8": far(file.flash_attn_func(*given).transpose(1, 2), *rounded),
        "sam3 fp8 compiled": far(compiled(*given).transpose(1, 2), *rounded),
    }


def xdit(q: Tensor, k: Tensor, v: Tensor) -> dict[str, float]:
    file = taken(
        "xfuser", "xfuser/core/distributed/attention_backend.py",
        *("_flash_attn_3_call", "_flash_attn_3_fp8_call", "_varlen_pack_keys", "per_tensor_quant", "get_dtype_max"),
        env_info={"has_flash_attn_3": True},
        register_attention_function=lambda _: lambda function: function,
        AttentionBackendType=SimpleNamespace(FLASH_3=None, FLASH_3_FP8=None),
    )  # fmt: skip
    padding = torch.ones(len(q), k.shape[2], dtype=torch.bool)
    padding[1, 7:] = False
    lengths = padding.sum(1)
    packed = {
        "indices_k": padding.flatten().nonzero().flatten(),
        "cu_seqlens_k": F.pad(lengths.cumsum(0), (1, 0)).int(),
        "max_seqlen_k": int(lengths.max()),
    }
    out, lse = file._flash_attn_3_call(q, k, v, 0.0, True)
    assert lse.shape == q.shape[:3]
    some = file._flash_attn_3_call(q, k, v, 0.0, False, packed)[0]
    fp8 = file._flash_attn_3_fp8_call(q, k, v, 0.0, False)[0]
    rounded = [x.float() * scale[..., None, None] for x, scale in map(file.per_tensor_quant, (q, k, v))]
    return {
        "xdit": far(out, q, k, v, is_causal=True),
        "xdit packed": far(some, q, k, v, attn_mask=padding[:, None, None]),
        "xdit fp8": far(fp8, *rounded),
    }


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    given = torch.randn(3, 2, 4, 12, 32, dtype=torch.bfloat16)
    print(json.dumps({name: gap for one in (diffsynth, ltx, sam3, xdit) for name, gap in one(*given).items()}))


if __name__ == "__main__":
    main()
