from nanochat import script


class Engine:
    def __init__(self, model, tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    def generate(self, tokens, num_samples=1, max_tokens=None, temperature=1.0, top_k=None, seed=42):
        seen = list(tokens)
        for _ in range(max_tokens):
            token = script.next_token(seen)
            seen.append(token)
            yield [token]  # newer nanochat yields no masks
            if token == self.tokenizer.encode_special("<|assistant_end|>"):
                return
