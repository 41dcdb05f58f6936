"""Run inside an environment with the real transformers: what it detects, and tiny models through FA3 and through eager.

With --fa2 it is FlashAttention-2's name, `flash_attn`, that is looked for and called.

Faked: `torch.cuda.is_available`, `device_count` and `get_device_capability`, which transformers asks before it accepts
the package. The models, their tensors and the arithmetic stay on the CPU. The last line of output is a JSON object.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from typing import Any

import torch

CALLS: list[tuple[str, dict[str, Any]]] = []
FA2 = "--fa2" in sys.argv
FLASH = "flash_attention_2" if FA2 else "flash_attention_3"
VOCABULARY = 97


def fake_cuda() -> None:
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.get_device_capability = lambda *_: (12, 1)


def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself to whoever inspects it; its keywords are written down."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        CALLS.append((function.__name__, kwargs))
        return function(*args, **kwargs)

    return call


def seen(name: str, key: str) -> list[Any]:
    return [kwargs[key] for function, kwargs in CALLS if function == name and key in kwargs]


def model(kind: str, implementation: str, dtype: torch.dtype = torch.float32) -> Any:
    import transformers

    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
    }
    extra: dict[str, dict[str, Any]] = {
        "llama": {},
        "mistral": {"sliding_window": 8},
        "gpt_oss": {
            "sliding_window": 8,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    }
    config = transformers.AutoConfig.for_model(kind, **shape, **extra[kind])
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation).to(dtype)
    if kind == "gpt_oss":
        for name, parameter in made.named_parameters():
            if name.endswith("sinks"):
                torch.nn.init.normal_(parameter)
    return made.eval()


def difference(kind: str, *, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """How far the logits through FA3 are from eager ones: plain, and with padded rows."""
    mine, eager = model(kind, FLASH, dtype), model(kind, "eager", dtype)
    eager.load_state_dict(mine.state_dict())
    tokens = torch.randint(VOCABULARY, (2, 24))
    mask = torch.ones_like(tokens)
    mask[1, :9] = 0  # padded on the left
    with torch.inference_mode():
        full = (mine(tokens).logits - eager(tokens).logits).abs().max()
        padded = mine(tokens, attention_mask=mask).logits - eager(tokens, attention_mask=mask).logits
    return {"plain": float(full), "padded": float(padded[mask.bool()].abs().max())}


def packed_difference() -> float:
    """Two documents in one row, told apart by position_ids only."""
    mine = model("llama", FLASH)
    tokens = torch.randint(VOCABULARY, (1, 20))
    positions = torch.cat((torch.arange(7), torch.arange(13)))[None]
    with torch.inference_mode():
        together = mine(tokens, position_ids=positions, use_cache=False).logits
        apart = [mine(piece, use_cache=False).logits for piece in tokens.split((7, 13), dim=1)]
    return float((together - torch.cat(apart, dim=1)).abs().max())


def generated(kind: str) -> list[list[int]]:
    tokens = torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(4))
    found = []
    state = model(kind, "eager").state_dict()
    for implementation in (FLASH, "eager"):
        network = model(kind, implementation)
        network.load_state_dict(state)
        new = network.generate(tokens, max_new_tokens=12, do_sample=False, pad_token_id=0)
        found.append(new[:, 12:].flatten().tolist())
    return found


def trained_difference() -> float:
    mine, eager = model("llama", FLASH), model("llama", "eager")
    eager.load_state_dict(mine.state_dict())
    tokens = torch.randint(VOCABULARY, (2, 24))
    for network in (mine, eager):
        network(tokens, labels=tokens).loss.backward()
    pairs = zip(mine.parameters(), eager.parameters(), strict=True)
    return max(float((a.grad - b.grad).abs().max()) for a, b in pairs)


def bert_difference() -> float:
    """ModernBERT over packed rows, which takes flash_attn's rotary embedding as well where transformers uses that."""
    from transformers import AutoModelForMaskedLM, ModernBertConfig

    shape = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "local_attention": 8, "global_attn_every_n_layers": 2, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2, "reference_compile": False,
    }  # fmt: skip
    torch.manual_seed(0)
    mine, eager = (
        AutoModelForMaskedLM.from_config(ModernBertConfig(**shape), attn_implementation=implementation).eval()
        for implementation in (FLASH, "eager")
    )
    eager.load_state_dict(mine.state_dict())
    tokens = torch.randint(3, VOCABULARY, (2, 24))
    mask = torch.ones_like(tokens)
    mask[1, 15:] = 0
    with torch.inference_mode():
        gap = mine(tokens, attention_mask=mask).logits - eager(tokens, attention_mask=mask).logits
    return float(gap.abs()[mask.bool()].max())


def main() -> None:
    import transformers.utils as found

    detected = found.is_flash_attn_2_available if FA2 else found.is_flash_attn_3_available
    if "--detect" in sys.argv:
        print(json.dumps({"detected": bool(detected())}))
        return
    fake_cuda()
    interface: Any
    if FA2:
        torch.version.cuda = "13.0"  # transformers 4.57 asks torch what it was built for
        import flash_attn as interface
    else:
        import flash_attn_interface as interface

    for name in ("flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"):
        setattr(interface, name, recorded(getattr(interface, name)))
    import transformers

    report: dict[str, Any] = {"version": transformers.__version__, "detected": bool(detected())}
    report["llama"] = difference("llama")
    report["llama_bf16"] = difference("llama", dtype=torch.bfloat16)
    CALLS.clear()
    report["packed"] = packed_difference()
    lengths = seen("flash_attn_varlen_func", "max_seqlen_q")
    report["packed_lengths"] = sorted({type(value).__name__ for value in lengths})
    CALLS.clear()
    report["mistral"] = difference("mistral")
    windows = seen("flash_attn_func", "window_size") + seen("flash_attn_varlen_func", "window_size")
    report["windows"] = sorted({tuple(window) for window in windows})
    report["generated"] = generated("mistral")
    report["trained"] = trained_difference()
    if FA2:
        report["dropout"] = seen("flash_attn_func", "dropout_p")
        report["modernbert"] = bert_difference()
        print(json.dumps(report))
        return
    CALLS.clear()
    try:
        report["gpt_oss"] = difference("gpt_oss")
    except (ImportError, ValueError) as error:  # transformers insists on a kernel of the hub for this model
        report["gpt_oss"] = {"refused": str(error)}
    report["sinks_passed"] = bool(seen("flash_attn_func", "s_aux") + seen("flash_attn_varlen_func", "s_aux"))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
