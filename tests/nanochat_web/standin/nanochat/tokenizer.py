"""One token a byte, so that every character beyond ASCII comes in pieces; then nanochat's special tokens."""

SPECIAL = ("<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>")


class Tokenizer:
    def get_bos_token_id(self) -> int:
        return 256

    def get_vocab_size(self) -> int:
        return 256 + len(SPECIAL)

    def encode_special(self, text: str) -> int:
        return 256 + SPECIAL.index(text)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: list[int]) -> str:
        pieces = (bytes([t]) if t < 256 else SPECIAL[t - 256].encode() for t in tokens)
        return b"".join(pieces).decode("utf-8", "replace")


def get_tokenizer() -> Tokenizer:
    return Tokenizer()
