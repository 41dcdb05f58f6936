"""No attention at all: only the script."""

from dataclasses import dataclass

from kernels import has_kernel

assert has_kernel("varunneal/flash-attention-3"), "not under the override"


@dataclass
class GPTConfig:
    sequence_len: int = 256
    vocab_size: int = 265
    n_layer: int = 1
    n_head: int = 2
    n_kv_head: int = 1
    n_embd: int = 32


class GPT:
    def __init__(self, config: GPTConfig) -> None:
        self.config = config

    def to(self, device) -> "GPT":
        return self

    def eval(self) -> "GPT":
        return self

    def parameters(self) -> list:
        return []
