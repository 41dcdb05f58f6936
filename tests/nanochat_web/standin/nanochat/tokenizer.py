"""One token a byte, so that every character beyond ASCII comes in pieces; then nanochat's special tokens.

The trained part is a file with one number: how many entries the vocabulary has.
"""

from pathlib import Path

from nanochat import common

SPECIAL = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)


class Tokenizer:
    def __init__(self, entries: int) -> None:
        self.entries = entries

    def get_bos_token_id(self) -> int:
        return 256

    def get_vocab_size(self) -> int:
        return self.entries

    def encode_special(self, text: str) -> int:
        return 256 + SPECIAL.index(text)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: list[int]) -> str:
        pieces = (bytes([t]) if t < 256 else SPECIAL[t - 256].encode() for t in tokens)
        return b"".join(pieces).decode("utf-8", "replace")


def get_tokenizer() -> Tokenizer:
    folder = common.get_experiment_dir() if hasattr(common, "get_experiment_dir") else common.get_base_dir()
    with (Path(folder) / "tokenizer" / "tokenizer.pkl").open() as file:
        return Tokenizer(int(file.read()))
