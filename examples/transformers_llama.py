"""A small random Llama from transformers with attn_implementation="flash_attention_3", next to "eager".

    pip install transformers
    python examples/transformers_llama.py

transformers itself insists on a CUDA device for flash_attention_3; without one this script says so and stops.
"""

from __future__ import annotations

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import is_flash_attn_3_available


def main() -> int:
    if not is_flash_attn_3_available():
        why = "no CUDA device" if not torch.cuda.is_available() else "no flash_attn_3: see `flash-attn3 doctor`"
        print(f"transformers does not offer flash_attention_3 here: {why}")
        return 0
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1000,
    )
    torch.manual_seed(0)
    tokens = torch.randint(0, 1000, (2, 128), device="cuda")
    logits = {}
    for implementation in ("eager", "flash_attention_3"):
        torch.manual_seed(1)
        config._attn_implementation = implementation
        model = LlamaForCausalLM(config).to("cuda", torch.bfloat16).eval()
        with torch.inference_mode():
            logits[implementation] = model(tokens).logits.float()
    gap = (logits["eager"] - logits["flash_attention_3"]).abs().max().item()
    print(f"largest difference between eager and flash_attention_3: {gap:.3f}")
    return 0 if gap < 0.1 else 1


if __name__ == "__main__":
    sys.exit(main())
