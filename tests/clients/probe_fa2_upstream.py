"""Run inside an environment with einops: FlashAttention-2's own Python files, from its sdist, over our `flash_attn`.

    python probe_fa2_upstream.py FOLDER    (the folder that the sdist was unpacked to)

Its modules/mha.py is executed as it stands, its attention by matrix products and its rotary module over our kernel
function; ours must give the same with the same weights. Its bert_padding.py and the torch form of its rotation are
compared as well. Left out: `flash_attn.utils.distributed`, of which one name is imported that nothing here calls. The
last line of output is JSON: the largest difference of each comparison.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import flash_attn.bert_padding
import flash_attn.flash_attn_interface
import flash_attn.layers.rotary
import flash_attn.modules.mha
import torch
from torch import Tensor

FOLDER = Path(sys.argv[1]) / "flash_attn"


def upstream(path: str) -> ModuleType:
    name = f"upstream_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, FOLDER / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def far(a: Any, b: Any) -> float:
    if isinstance(a, tuple):
        assert len(a) == len(b)
        return max(far(x, y) for x, y in zip(a, b, strict=True))
    if not isinstance(a, Tensor):
        return float(abs(a - b))
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    return float((a.detach().double() - b.detach().double()).abs().max()) if a.numel() else 0.0


def signatures() -> list[str]:
    """Public and private functions whose parameters or defaults are not upstream's."""
    ours, different = flash_attn.flash_attn_interface, []
    tree = ast.parse((FOLDER / "flash_attn_interface.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or "flash_attn" not in node.name or node.name.endswith("_fake"):
            continue
        names = [argument.arg for argument in node.args.args]
        defaults = [ast.literal_eval(default) for default in node.args.defaults]
        theirs = (names, defaults)
        spec = inspect.getfullargspec(getattr(ours, node.name))
        if theirs != (spec.args, list(spec.defaults or ())):
            different.append(node.name)
    return different


def modules(theirs: ModuleType) -> dict[str, float]:
    """Outputs and gradients of MHA: upstream's by matrix products, ours through flash attention."""
    gaps = {}
    for name, options in {
        "plain": {},
        "grouped": {"num_heads_kv": 2},
        "convolved": {"dwconv": True},
        "rotary": {"rotary_emb_dim": 16},
        "interleaved": {"rotary_emb_dim": 8, "rotary_emb_interleaved": True, "num_heads_kv": 2},
        "xpos": {"rotary_emb_dim": 16, "rotary_emb_scale_base": 512},
        "cross": {"cross_attn": True},
    }.items():
        torch.manual_seed(0)
        given: dict[str, Any] = {"embed_dim": 64, "num_heads": 4, "causal": True, **options}
        right, mine = theirs.MHA(**given), flash_attn.modules.mha.MHA(**given, use_flash_attn=True)
        mine.load_state_dict(right.state_dict())
        x = torch.randn(2, 9, 64)
        extra = {"x_kv": torch.randn(2, 12, 64)} if name == "cross" else {}
        a, b = mine(x, **extra), right(x, **extra)
        dout = torch.randn_like(a)
        found, expected = (torch.autograd.grad(y, list(m.parameters()), dout) for y, m in ((a, mine), (b, right)))
        gaps[name] = max(far(a, b), far(found, expected))
    return gaps


def generated(theirs: ModuleType) -> float:
    """Token by token into the cache, against upstream's whole forward."""
    torch.manual_seed(1)
    given: dict[str, Any] = {"embed_dim": 64, "num_heads": 4, "num_heads_kv": 2, "causal": True, "rotary_emb_dim": 16}
    right, mine = theirs.MHA(**given), flash_attn.modules.mha.MHA(**given, use_flash_attn=True, layer_idx=0)
    mine.load_state_dict(right.state_dict())
    x = torch.randn(2, 11, 64)
    params = SimpleNamespace(
        max_seqlen=16, max_batch_size=2, seqlen_offset=0, batch_size_offset=0, key_value_memory_dict={},
        lengths_per_sample=None,
    )  # fmt: skip
    with torch.inference_mode():
        pieces = []
        for piece in x.split((6, 1, 1, 3), dim=1):
            pieces.append(mine(piece, inference_params=params))
            params.seqlen_offset += piece.shape[1]
        return far(torch.cat(pieces, dim=1), right(x))


def padding(theirs: ModuleType) -> float:
    ours = flash_attn.bert_padding
    assert ours.rearrange is theirs.rearrange and ours.repeat is theirs.repeat  # einops', which verl takes from there
    x = torch.randn(3, 6, 2, 4)
    mask = torch.arange(6) < torch.tensor([4, 6, 1])[:, None]
    unused = (torch.arange(6) == 5) & ~mask
    lengths = torch.tensor([[2, 3, 0, 0, 0, 0], [3, 2, 0, 0, 0, 0], [6, 0, 0, 0, 0, 0]])
    gaps = [far(ours.unpad_input(x, mask), theirs.unpad_input(x, mask))]
    gaps.append(far(ours.unpad_input(x, mask.int(), unused.int()), theirs.unpad_input(x, mask.int(), unused.int())))
    name = "unpad_input_for_concatenated_sequences"
    gaps.append(far(getattr(ours, name)(x, lengths), getattr(theirs, name)(x, lengths)))
    results = []
    for module in (ours, theirs):
        leaf = x.clone().requires_grad_()
        tokens, indices, *_ = module.unpad_input(leaf, mask)
        back = module.pad_input(tokens.square(), indices, 3, 6)
        results.append((back.detach(), *torch.autograd.grad(back.sum(), leaf)))
    return max(*gaps, far(*results))


def rotation(theirs: ModuleType) -> float:
    x, angles = torch.randn(2, 7, 3, 16), torch.randn(7, 4)
    return max(
        far(
            flash_attn.layers.rotary.apply_rotary_emb(x, angles.cos(), angles.sin(), interleaved),
            theirs.apply_rotary_emb_torch(x, angles.cos(), angles.sin(), interleaved),
        )
        for interleaved in (False, True)
    )


def main() -> None:
    absent: Any = ModuleType("flash_attn.utils.distributed")
    absent.get_dim_for_local_rank = None
    sys.modules["flash_attn.utils"], sys.modules["flash_attn.utils.distributed"] = ModuleType("u"), absent
    rotary = upstream("layers/rotary.py")
    ours = flash_attn.layers.rotary.RotaryEmbedding
    flash_attn.layers.rotary.RotaryEmbedding = rotary.RotaryEmbedding  # upstream's mha.py takes upstream's
    mha = upstream("modules/mha.py")
    flash_attn.layers.rotary.RotaryEmbedding = ours
    report: dict[str, Any] = {"signatures": signatures(), "padding": padding(upstream("bert_padding.py"))}
    report |= {"rotation": rotation(rotary), "modules": modules(mha), "generated": generated(mha)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
