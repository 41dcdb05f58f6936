import json
import os
import sys
import time
from pathlib import Path

from nanochat.common import get_base_dir
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import get_tokenizer

FOLDERS = {
    "base": "base_checkpoints",
    "mid": "mid_checkpoints",
    "sft": "chatsft_checkpoints",
    "rl": "chatrl_checkpoints",
}


def load_model(source, device, phase, model_tag=None, step=None):
    assert phase == "eval"
    folder = Path(get_base_dir()) / FOLDERS[source] / model_tag
    assert (folder / f"model_{step:06d}.pt").stat().st_size > 0
    meta = json.loads((folder / f"meta_{step:06d}.json").read_text())
    how = meta.get("standin")
    if how == "die":
        print("RuntimeError: CUDA error: no kernel image is available for execution on the device", file=sys.stderr)
        os._exit(9)
    if how == "silent":
        time.sleep(3600)
    model = GPT(GPTConfig(**meta["model_config"])).to(device).eval()
    tokenizer = get_tokenizer()
    assert tokenizer.get_vocab_size() == meta["model_config"]["vocab_size"]
    return model, tokenizer, meta
