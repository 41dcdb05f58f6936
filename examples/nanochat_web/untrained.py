"""Writes a model that nobody has trained, with nanochat's own code, to try the page and to measure speed.

Run it in the checkout with nanochat's Python; it answers nonsense at the speed of a trained model of its size:

    NANOCHAT_BASE_DIR=/tmp/try flash-attn3 run -- .venv/bin/python .../examples/nanochat_web/untrained.py --depth 4
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import sys
from pathlib import Path
from typing import Any

VOCABULARY = 1024
FOLDERS = {"sft": "chatsft_checkpoints", "base": "base_checkpoints"}


def tokenizer(base: Path) -> int:
    """Train a small tokenizer on the checkout's own sources unless there is one; the size of its vocabulary."""
    module = importlib.import_module("nanochat.tokenizer")
    folder = base / "tokenizer"
    if not (folder / "tokenizer.pkl").exists():
        texts = [path.read_text(encoding="utf-8") for path in sorted(Path().glob("nanochat/*.py"))]
        module.RustBPETokenizer.train_from_iterator(iter(texts), VOCABULARY).save(str(folder))
    return int(module.get_tokenizer().get_vocab_size())


def model(depth: int, context: int, vocabulary: int) -> tuple[Any, Any]:
    """A model of nanochat's shape for a depth, with random weights in every layer."""
    import torch

    gpt = importlib.import_module("nanochat.gpt")
    width = 64 * depth
    heads = max(1, width // 128)
    config = gpt.GPTConfig(
        sequence_len=context, vocab_size=vocabulary, n_layer=depth, n_head=heads, n_kv_head=heads, n_embd=width
    )
    with torch.device("meta"):
        made = gpt.GPT(config)
    made.to_empty(device="cpu")
    made.init_weights()
    # nanochat begins with layers that add nothing. These add something, or every model would say the same.
    generator = torch.Generator().manual_seed(depth)
    for name, parameter in made.named_parameters():
        if parameter.ndim > 1 and name.endswith(("c_proj.weight", "lm_head.weight")):
            scale = 2 / parameter.shape[1] ** 0.5
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float32) * scale)
    return made, config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=4, metavar="N", help="layers; the width is 64 times as much")
    parser.add_argument("--context", type=int, default=2048, metavar="N", help="tokens that it reads at once")
    parser.add_argument("--stage", choices=sorted(FOLDERS), default="sft")
    parser.add_argument("--step", type=int, default=0, metavar="N")
    args = parser.parse_args()
    sys.path[0] = os.getcwd()  # noqa: PTH109 - as `python -m` would have it
    base = Path(importlib.import_module("nanochat.common").get_base_dir())
    made, config = model(args.depth, args.context, tokenizer(base))
    folder = base / FOLDERS[args.stage] / f"d{args.depth}"
    meta = {"step": args.step, "val_bpb": None, "model_config": dataclasses.asdict(config)}
    importlib.import_module("nanochat.checkpoint_manager").save_checkpoint(
        str(folder), args.step, made.state_dict(), None, meta
    )
    print(folder / f"model_{args.step:06d}.pt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
