"""Called where kernels are executed on the CPU, with the real transformers: a tiny gpt-oss through them and eager.

Faked: `torch.cuda.is_available`, which transformers asks before it accepts a package. Our engine takes the CPU for a
GB10 whose library is the executed one; everything between the model and the library's ops is what users run, the canary
too. The model, its tensors and its other arithmetic are the CPU's.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from flash_attn3_sm121.hub import override
from tests.fakes import libraries
from tests.fakes.fault_kernels import PROFILE

LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
# More rows than a tile has, no multiple of one; a window that is narrower than a tile of keys.
BATCH, ROWS, WINDOW, VOCABULARY = 2, 150, 40, 97
FAR_SINK = -1e4  # a sink that takes no part


def model(implementation: str, dtype: torch.dtype, state: dict[str, Tensor] | None = None) -> Any:
    """The model with two experts that are both asked: a rounding must not choose between them."""
    import transformers

    config = transformers.AutoConfig.for_model(
        "gpt_oss",
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=len(LAYERS),
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=256,
        sliding_window=WINDOW,
        layer_types=LAYERS,
        num_local_experts=2,
        num_experts_per_tok=2,
    )
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation).to(dtype).eval()
    if state is not None:
        made.load_state_dict(state)
        return made
    for name, parameter in made.named_parameters():  # scores that differ, and sinks that weigh as much as they do
        if name.endswith("sinks"):
            torch.nn.init.normal_(parameter, mean=2.0)
        elif name.endswith(("q_proj.weight", "k_proj.weight")):
            torch.nn.init.normal_(parameter, std=0.1)
    return made


def trained(network: Any) -> dict[str, Tensor]:
    """The logits of a step of training, and the gradients of all parameters, by kind of parameter."""
    tokens = torch.randint(VOCABULARY, (BATCH, ROWS), generator=torch.Generator().manual_seed(1))
    result = network(tokens, labels=tokens, use_cache=False)
    result.loss.backward()
    found: dict[str, list[Tensor]] = {"logits": [result.logits.detach().double().flatten()]}
    for name, parameter in network.named_parameters():
        kind = next((kind for kind in ("sinks", "q_proj", "k_proj", "v_proj") if kind in name), "others")
        found.setdefault(kind, []).append(parameter.grad.double().flatten())
    return {kind: torch.cat(parts) for kind, parts in found.items()}


def distances(found: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, float]:
    """Relative, in the Euclidean norm."""
    return {kind: float((found[kind] - exact).norm() / exact.norm()) for kind, exact in right.items()}


def show(gpu: Any, implementations: list[str], home: str) -> dict[str, Any]:
    """How far logits and gradients in bf16 are from eager's in fp32: through our kernels, and eager's own in bf16.

    `ignored` is how far they are where sinks take no part. An implementation has its own name once transformers has
    settled it, and how many launches there were when it was done; the canary's come with the first calls.
    """
    os.environ |= {"HF_HOME": home, "HF_HUB_OFFLINE": "1"}
    torch.cuda.is_available = lambda: True
    override(quiet=True)
    serving = libraries.executed(gpu, PROFILE, canary=True)
    libraries.install(pytest.MonkeyPatch(), serving)
    low = model("eager", torch.bfloat16)
    state = low.state_dict()
    right = trained(model("eager", torch.float32, state))
    without = {name: torch.full_like(x, FAR_SINK) if name.endswith("sinks") else x for name, x in state.items()}
    report: dict[str, Any] = {
        "eager": distances(trained(low), right),
        "ignored": distances(trained(model("eager", torch.float32, without)), right),
    }
    for name in implementations:
        mine = model(name, torch.bfloat16, state)
        found = distances(trained(mine), right)
        settled = mine.config._attn_implementation
        report[name] = {"distances": found, "settled": settled, "launches": len(gpu.launches)}
    report["plans"] = [type(plan).__name__ for plan in serving.plans.values()]
    return report
