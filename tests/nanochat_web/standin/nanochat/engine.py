import torch


class Cache:
    def __init__(self, config, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (1, capacity, config.n_kv_head, config.n_embd // config.n_head)
        self.k, self.v = torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(1, dtype=torch.int32, device=device)
        self.seen: list[int] = []


class Engine:
    def __init__(self, model, tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    @torch.inference_mode()
    def generate(self, tokens, num_samples=1, max_tokens=None, temperature=1.0, top_k=None, seed=42):
        assert isinstance(tokens, list) and num_samples == 1 and (top_k is None or top_k > 0)
        device = self.model.get_device()
        rng = torch.Generator(device=device).manual_seed(seed)
        cache = Cache(self.model.config, len(tokens) + max_tokens, torch.float32, device)
        ids = torch.tensor([tokens], device=device)
        for _ in range(max_tokens):
            logits = self.model(ids, cache)[0, -1]
            if temperature == 0:
                token = int(logits.argmax())
            else:
                token = int(torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=rng))
            yield [token], [1]
            if token == self.tokenizer.encode_special("<|assistant_end|>"):
                return
            ids = torch.tensor([[token]], device=device)
