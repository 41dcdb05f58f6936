import json
from pathlib import Path

from nanochat.common import get_experiment_dir
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import get_tokenizer


def load_model(source, device, model_tag=None, step=None, phase="eval"):
    folder = Path(get_experiment_dir()) / model_tag / source
    meta = json.loads((folder / f"meta_{step:06d}.json").read_text())
    return GPT(GPTConfig(**meta["model_config"])), get_tokenizer(), meta
