"""Run in a nanochat checkout by its Python: chats decoded as one batch against nanochat's own generator.

    python compare_rows.py SOURCE TAG STEP [--ours]

`--ours` gives newer nanochat our attention where it would not ask for it, as on a CPU. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [
    "def ",
    "import torch\n\n\nclass Model",
    "x",
    "The tokenizer is trained on " * 6,
    "return self.",
    "free",
    "calc",
]
PROMPTS.append("free as a bird")


def main() -> int:
    ours = "--ours" in sys.argv
    source, tag, step = [word for word in sys.argv[1:] if word != "--ours"]
    sys.path[0] = str(ROOT / "examples")
    from nanochat_web.model import Model
    from nanochat_web.rows import Rows
    from nanochat_web.worker import OneByOne, decoder

    sys.path[0] = os.getcwd()  # noqa: PTH109
    if ours:
        attention = importlib.import_module("nanochat.flash_attention")
        attention._fa3 = (
            importlib.import_module("kernels").get_kernel("varunneal/flash-attention-3").flash_attn_interface
        )
        attention.USE_FA3 = True
    args = argparse.Namespace(source=source, tag=tag, step=int(step), style="chat", device="cpu")
    model = Model(args, lambda text: None)
    call = "<|python_start|>6*7<|python_end|><|output_start|>42<|output_end|>"
    calculation = model.answer_tokens(call)
    assert model.tokenizer.decode(calculation) == call
    made_by, told = decoder(model, "batch")
    if not isinstance(made_by, Rows):
        print(json.dumps({"decoding": told, "calculation": len(calculation)}))
        return 0
    orders = [
        {"temperature": 0.0 if at == 0 else 0.9, "top_k": (50, 0, 7)[at % 3], "seed": at, "max": (40, 25, 60)[at % 3]}
        for at in range(len(PROMPTS))
    ]
    prompts = [model.prompt([{"role": "user", "content": text}], 60)[0] for text in PROMPTS]

    def made(decode: OneByOne | Rows, joins: list[int]) -> list[list[int]]:
        """Every answer, where chat number i joins at step joins[i]."""
        answers: list[list[int]] = [[] for _ in prompts]
        running: set[str] = set()
        for number in range(200):
            for at, join in enumerate(joins):
                if join == number:
                    decode.add(str(at), prompts[at], orders[at]["max"], orders[at])
                    running.add(str(at))
            for name, token in list(decode.step()) if running else ():
                if isinstance(token, int) and token not in model.ends:
                    answers[int(name)].append(token)
                    continue
                assert not isinstance(token, Exception), token
                running.discard(name)
                decode.remove(name)
        return answers

    alone = made(OneByOne(model), [0] * len(prompts))
    batch = made(Rows.of(model), [0, 0, 3, 7, 7, 8, 20, 30])
    same = [a == b for a, b in zip(alone, batch, strict=True)]
    texts = [model.tokenizer.decode(answer) for answer in batch]
    print(
        json.dumps(
            {
                "decoding": told,
                "calculation": len(calculation),
                "same": same,
                "lengths": [len(answer) for answer in alone],
                "texts": texts,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
