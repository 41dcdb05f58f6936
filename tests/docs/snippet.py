"""Run inside a client's environment: a page's code over a tiny model, and what came of it as one JSON line.

    python snippet.py transformers|diffusers|example CODE.py

Faked: torch says that it has a CUDA device, and "cuda" in the code is read as "cpu".
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "clients"))

import torch
from probe_transformers import fake_cuda

CALLS: list[str] = []


def counted() -> None:
    """Write down the calls of our public functions."""
    import flash_attn_interface

    for name in ("flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"):
        real = getattr(flash_attn_interface, name)

        def call(*args: Any, _real: Any = real, _name: str = name, **kwargs: Any) -> Any:
            CALLS.append(_name)
            return _real(*args, **kwargs)

        call.__signature__ = __import__("inspect").signature(real)  # type: ignore[attr-defined]
        call.__name__ = name
        setattr(flash_attn_interface, name, call)


def on_cpu(code: str) -> str:
    return code.replace('"cuda"', '"cpu"')


def transformers(code: str, readme: str) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 97}
    config = LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained("my-model")
    names: dict[str, Any] = {}
    exec(on_cpu(code), names)
    eager = AutoModelForCausalLM.from_pretrained("my-model", attn_implementation="eager", dtype=torch.bfloat16)
    with torch.inference_mode():
        gap = names["model"](names["tokens"]).logits - eager(names["tokens"]).logits
    again = eval(readme, {"AutoModelForCausalLM": AutoModelForCausalLM, "name": "my-model"})
    return {
        "new": list(names["new"].shape),
        "gap": float(gap.float().abs().max()),
        "readme": again.config._attn_implementation,
    }


def diffusers(code: str, readme: str) -> dict[str, Any]:
    from types import SimpleNamespace

    from diffusers import FluxTransformer2DModel
    from diffusers.models import attention_dispatch as dispatch

    torch.manual_seed(0)
    shape = {"patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
    more = {"num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32}
    plain = FluxTransformer2DModel(**shape, **more, axes_dims_rope=(4, 4, 8)).to(torch.bfloat16)
    plain.save_pretrained("my-model/transformer")
    # diffusers registers its FA3 op for CUDA only: its own function serves the CPU as well here.
    wrapped = dispatch._wrapped_flash_attn_3
    wrapped.register_kernel("cpu")(wrapped._init_fn)
    names: dict[str, Any] = {}
    exec(on_cpu(code), names)
    inputs = {
        "hidden_states": torch.randn(1, 6, 4, dtype=torch.bfloat16),
        "encoder_hidden_states": torch.randn(1, 5, 32, dtype=torch.bfloat16),
        "pooled_projections": torch.randn(1, 32, dtype=torch.bfloat16),
        "timestep": torch.ones(1, dtype=torch.bfloat16),
        "img_ids": torch.zeros(6, 3),
        "txt_ids": torch.zeros(5, 3),
    }
    with torch.inference_mode():
        gap = names["transformer"](**inputs).sample - plain(**inputs).sample
        calls = len(CALLS)
        eval(readme, {"pipe": SimpleNamespace(transformer=plain)})
        plain(**inputs)
    return {"gap": float(gap.float().abs().max()), "readme": len(CALLS) - calls}


def example(code: str, _: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    exec(on_cpu(code), names)
    return {"code": names["main"]()}


def main() -> None:
    kind, file, readme = sys.argv[1:4]
    fake_cuda()
    counted()
    code = Path(file).read_text(encoding="utf-8")
    report = {"transformers": transformers, "diffusers": diffusers, "example": example}[kind](code, readme)
    print(json.dumps({**report, "calls": sorted(set(CALLS))}))


if __name__ == "__main__":
    main()
