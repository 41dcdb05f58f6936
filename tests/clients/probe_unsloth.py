"""Run inside an environment with the real Unsloth: imported whole, then its attention of Llama and of Gemma 2.

Faked: torch's answers about a device, and the stream of one, which Unsloth's import asks for; `os.system`, by which it
runs ldconfig for root where there is no bitsandbytes. It is imported without Triton and bitsandbytes, which it allows:
its Triton kernels are then stand-ins of its own. The rotation is such a kernel, so that no row is rotated here, on
either side of the comparison. The last line of output is JSON.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

CALLS: list[str] = []
SHAPE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 97,
}  # fmt: skip
LENGTHS = (7, 13, 4)  # the documents of a packed row


def fake_cuda() -> None:
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_capability = lambda *_: (12, 1)
    torch.cuda.get_device_properties = lambda *_: SimpleNamespace(multi_processor_count=48)
    torch._C._cuda_getCurrentRawStream = lambda *_: 0
    os.system = lambda *_: 0


def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        CALLS.append(function.__name__)
        return function(*args, **kwargs)

    return call


def plain(module: Any, hidden: Tensor, lengths: tuple[int, ...], *, window: int = 0, softcap: float = 0.0) -> Tensor:
    """What a layer's attention is, without rotation: documents in a row, causal."""
    batch, tokens, _ = hidden.shape
    names = (module.q_proj, module.k_proj, module.v_proj)
    q, k, v = (x(hidden).view(batch, tokens, -1, module.head_dim).transpose(1, 2) for x in names)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = q @ k.mT * module.scaling
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    far = torch.arange(tokens)[:, None] - torch.arange(tokens)
    seen = (document[:, None] == document) & (far >= 0) & (far < (window or tokens))
    out = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v
    return module.o_proj(out.transpose(1, 2).flatten(2))


def gaps(attention: Callable[..., Any], module: Any, packed: bool, causal_mask: Any = None, **options: Any) -> Any:
    """The largest differences, of the output and of the gradients, from attention in float32."""
    torch.manual_seed(0)
    tokens = sum(LENGTHS)
    hidden = torch.randn(1 if packed else 2, tokens, 64).bfloat16().requires_grad_()
    exact = hidden.detach().float().requires_grad_()
    lengths = {"packed_seq_lengths": torch.tensor(LENGTHS, dtype=torch.int32)} if packed else {}
    module.bfloat16()
    out = attention(module, hidden, causal_mask, **lengths)[0]
    out.float().square().sum().backward()
    module.float()
    right = plain(module, exact, LENGTHS if packed else (tokens,), **options)
    right.square().sum().backward()
    pairs = ((out.detach(), right.detach()), (hidden.grad, exact.grad))
    return [float((found - wanted).abs().max() / wanted.abs().max()) for found, wanted in pairs]


def main() -> None:
    os.chdir(Path.home())  # it makes a folder where it runs
    fake_cuda()
    import unsloth  # noqa: F401  (before transformers, which it patches)
    from transformers import Gemma2Config, LlamaConfig, LlamaForCausalLM
    from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention
    from transformers.models.llama.modeling_llama import LlamaAttention
    from unsloth.models import _utils, gemma2, llama
    from unsloth.utils import attention_dispatch as dispatch

    report: dict[str, Any] = {
        "found": _utils.HAS_FLASH_ATTENTION,
        "softcap": _utils.HAS_FLASH_ATTENTION_SOFTCAPPING,
        "backends": [dispatch.select_attention_backend(), dispatch.select_attention_backend(use_varlen=True)],
        "functions": dispatch.flash_attn_func.__module__,
    }
    config = LlamaConfig(**SHAPE)
    report["implementation"] = _utils.resolve_attention_implementation(LlamaForCausalLM, config, dtype=torch.bfloat16)

    for name in ("flash_attn_func", "flash_attn_varlen_func"):
        setattr(dispatch, name, recorded(getattr(dispatch, name)))
    for file in (llama, gemma2):
        file.fast_rope_embedding = lambda q, k, *_: (q, k)
    nothing = torch.empty(0)
    rotary = SimpleNamespace(extend_rope_embedding=lambda *_, **__: None, get_cached=lambda *_: (nothing, nothing))

    torch.manual_seed(0)
    layer: Any = LlamaAttention(config, 0)
    layer.rotary_emb = rotary
    report["llama"] = [gaps(llama.LlamaAttention_fast_forward, layer, packed) for packed in (False, True)]
    window, softcap = 5, 0.5
    own = {"query_pre_attn_scalar": 16, "sliding_window": window, "attn_logit_softcapping": softcap}
    layer = Gemma2Attention(Gemma2Config(**SHAPE, **own), 0)
    layer.rotary_emb = rotary
    report["gemma2"] = [
        gaps(gemma2.Gemma2Attention_fast_forward, layer, packed, local, softcap=softcap, window=window * local)
        for packed in (False, True)
        for local in (False, True)
    ]
    report["calls"] = CALLS
    print(json.dumps(report))


if __name__ == "__main__":
    main()
