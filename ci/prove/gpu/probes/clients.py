"""The real transformers on the device: a small model through `flash_attention_3`, eager attention beside it.

The weights are random and small; the code that runs (detection, mask preparation, packing, the cache) is the user's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ci.prove.gpu.probes.compare import Finding, GpuCase, close

VOCABULARY = 97
TOKENS = 200
PADDED = 37
PROMPT, STEPS = 100, 6
WINDOW = 64  # shorter than the prompt
Results = dict[str, Tensor]


def model(kind: str, implementation: str, device: torch.device, dtype: torch.dtype) -> Any:
    """The same weights for every implementation and dtype: drawn on the CPU in bf16, which all of them hold exactly."""
    import transformers

    extra = {"sliding_window": WINDOW} if kind == "mistral" else {}
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, hidden_size=256, intermediate_size=384, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=512, **extra,
    )  # fmt: skip
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    return made.to(torch.bfloat16).to(device=device, dtype=dtype).eval()


def tokens(device: torch.device, length: int = TOKENS) -> Tensor:
    drawn = torch.randint(VOCABULARY, (2, length), generator=torch.Generator().manual_seed(1))
    return drawn.to(device)


def plain(network: Any, device: torch.device) -> Results:
    with torch.inference_mode():
        return {"logits": network(tokens(device)).logits}


def padded(network: Any, device: torch.device) -> Results:
    given = tokens(device)
    mask = torch.ones_like(given)
    mask[1, :PADDED] = 0
    with torch.inference_mode():
        logits = network(given, attention_mask=mask).logits
    return {"logits of the whole row": logits[0], "logits behind the padding": logits[1, PADDED:]}


def decoded(network: Any, device: torch.device) -> Results:
    """A prompt, then token after token through the cache; the tokens are given, for greedy ones may part company."""
    given = tokens(device, PROMPT + STEPS)
    with torch.inference_mode():
        said = network(given[:, :PROMPT], use_cache=True)
        logits = {"prompt": said.logits}
        for place in range(PROMPT, PROMPT + STEPS):
            said = network(given[:, place : place + 1], past_key_values=said.past_key_values, use_cache=True)
            logits[f"token {place}"] = said.logits
    return logits


def trained(network: Any, device: torch.device) -> Results:
    given = tokens(device)
    network(given, labels=given).loss.backward()
    names = ("q_proj.weight", "k_proj.weight", "v_proj.weight")
    return {name: value.grad for name, value in network.named_parameters() if name.endswith(names)}


def _case(name: str, kind: str, use: Callable[[Any, torch.device], Results]) -> GpuCase:
    def findings(device: torch.device, dtype: torch.dtype) -> Iterator[Finding]:
        got = use(model(kind, "flash_attention_3", device, dtype), device)
        low = use(model(kind, "eager", device, dtype), device)
        # fp32, not fp64: eager's mask value of fp64 becomes an infinity in its fp32 softmax, and padded rows NaN.
        exact = use(model(kind, "eager", device, torch.float32), device)
        for what, value in got.items():
            unit = exact[what].abs().max()  # gradients are small, and the rule allows for rounding near 0.3
            yield close(what, value / unit, exact[what].double() / unit, low[what] / unit)

    return GpuCase(name=f"transformers: {kind}, {name}", findings=findings)


def cases() -> tuple[GpuCase, ...]:
    return (
        _case("logits", "llama", plain),
        _case("padded on the left", "llama", padded),
        _case("token after token", "llama", decoded),
        _case("gradients", "llama", trained),
        _case(f"window {WINDOW}", "mistral", plain),
        _case("window, token after token", "mistral", decoded),
    )
