"""Run inside an environment with the real Wan 2.2: its attention, whose call is written for FlashAttention-3's beta.

Faked: it asserts a CUDA tensor, so its module is compiled without asserts; the rest of the package, which wants a GPU,
is not imported. The last line of output is JSON.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F


def attention_module() -> ModuleType:
    path = Path(str(importlib.metadata.distribution("wan22").locate_file("wan/modules/attention.py")))
    module = ModuleType("wan_attention")
    code = compile(path.read_text(encoding="utf-8"), str(path), "exec", optimize=1)
    exec(code, vars(module))
    return module


def main() -> None:
    torch.set_num_threads(1)
    wan = attention_module()
    q, k, v = (torch.randn(2, length, 4, 32) for length in (10, 12, 12))
    turned = [x.bfloat16().transpose(1, 2) for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*turned).transpose(1, 2).float()

    def far(found: Any) -> float:
        return float((found - expected).abs().max())

    compiled = torch.compile(wan.flash_attention, backend="eager", fullgraph=True)
    report = {
        "detected": wan.FLASH_ATTN_3_AVAILABLE,
        "plain": far(wan.flash_attention(q, k, v)),
        "lengths": far(wan.flash_attention(q, k, v, k_lens=torch.tensor([12, 12]))),
        "compiled": far(compiled(q, k, v)),
        "attention": far(wan.attention(q, k, v)),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
