"""Run inside an environment with the real transformers: `generate_batch`, its continuous batching, against `generate`.

With `--fa2` through FlashAttention-2's names, which then have to be there.

Faked: what transformers asks of CUDA before it accepts the package, as in probe_transformers.py, and before it decodes
with a table of pages; pinned memory; and that batches are padded, which it does for CUDA graphs.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
from typing import Any

import probe_transformers
import torch

LENGTHS = (5, 11, 3)  # three requests: their decode batches are padded to four


def answers(network: Any, prompts: list[list[int]]) -> list[list[int]]:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    settings = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0)
    found = network.generate_batch(
        prompts,
        generation_config=settings,
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=16, max_batch_tokens=32, max_blocks_per_request=4, max_requests_per_batch=4
        ),
        progress_bar=False,
    )
    return [list(output.generated_tokens) for output in found.values()]


def without_cuda() -> None:
    """The batching looks for the device's memory and streams: there is none but where it chooses the way to decode."""
    from transformers.generation.continuous_batching import initialization
    from transformers.generation.continuous_batching.model_runner import ModelRunner

    choose, empty = initialization.ensure_decode_fast_path_is_available, torch.empty

    def with_cuda(*arguments: Any) -> None:
        torch.cuda.is_available = lambda: True
        choose(*arguments)
        torch.cuda.is_available = lambda: False

    torch.cuda.is_available = lambda: False
    initialization.ensure_decode_fast_path_is_available = with_cuda
    torch.empty = lambda *sizes, pin_memory=False, **options: empty(*sizes, **options)
    ModelRunner.pad_inputs = property(lambda _: True, lambda *_: None)  # as with CUDA graphs


def main() -> None:
    probe_transformers.fake_cuda()
    generation = 2 if "--fa2" in sys.argv else 3
    interface: Any = importlib.import_module("flash_attn" if generation == 2 else "flash_attn_interface")
    padded, serve = [], interface.flash_attn_with_kvcache

    @functools.wraps(serve)
    def watched(*args: Any, **kwargs: Any) -> Any:
        padded.append(int((kwargs["cache_seqlens"] < 0).sum()))  # now: the buffer is used again
        return serve(*args, **kwargs)

    interface.flash_attn_with_kvcache = watched
    dice = torch.Generator().manual_seed(6)
    prompts = [torch.randint(1, 97, (length,), generator=dice).tolist() for length in LENGTHS]
    eager = probe_transformers.model("llama", "eager")
    mine = probe_transformers.model("llama", f"flash_attention_{generation}")
    mine.load_state_dict(eager.state_dict())
    want = []
    for prompt in prompts:
        new = eager.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, pad_token_id=0)
        want.append(new[0, len(prompt) :].tolist())
    without_cuda()
    got = answers(mine, prompts)
    print(json.dumps({"got": got, "want": want, "decoded": len(padded), "padded": max(padded, default=0)}))


if __name__ == "__main__":
    main()
