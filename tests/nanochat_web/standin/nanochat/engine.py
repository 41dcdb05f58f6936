"""The parts that nanochat's engine has, with their names; written for these tests."""

import ast
from collections import deque

import torch


class KVCache:
    def __init__(self, batch_size, num_heads, seq_len, head_dim, num_layers, device, dtype=torch.float32):
        self.max_seq_len, self.n_layers, self.n_heads, self.head_dim = seq_len, num_layers, num_heads, head_dim
        shape = (num_layers, batch_size, seq_len, num_heads, head_dim)
        self.k_cache = torch.zeros(shape, device=device, dtype=dtype)
        self.v_cache = torch.zeros(shape, device=device, dtype=dtype)
        self.cache_seqlens = torch.zeros(batch_size, dtype=torch.int32, device=device)

    def get_pos(self):
        return self.cache_seqlens[0].item()

    def get_layer_cache(self, layer):
        return self.k_cache[layer], self.v_cache[layer]

    def advance(self, count):
        self.cache_seqlens += count

    def prefill(self, other):
        end = other.get_pos()
        self.k_cache[:, :, :end] = other.k_cache[:, :, :end]
        self.v_cache[:, :, :end] = other.v_cache[:, :, :end]
        self.cache_seqlens.fill_(end)


def use_calculator(text):
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError:
        return None
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Mult):
        return None
    return node.left.value * node.right.value


def sample_next_token(logits, rng, temperature=1.0, top_k=None):
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    values, places = torch.topk(logits, min(top_k or logits.size(-1), logits.size(-1)))
    chosen = torch.multinomial(torch.softmax(values / temperature, -1), 1, generator=rng)
    return places.gather(1, chosen)


class RowState:
    def __init__(self, current_tokens=None):
        self.current_tokens = current_tokens or []
        self.forced_tokens = deque()
        self.in_python_block = False
        self.python_expr_tokens = []
        self.completed = False


class Engine:
    def __init__(self, model, tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    @torch.inference_mode()
    def generate(self, tokens, num_samples=1, max_tokens=None, temperature=1.0, top_k=None, seed=42):
        assert isinstance(tokens, list) and num_samples == 1 and (top_k is None or top_k > 0)
        device, config = self.model.get_device(), self.model.config
        special = self.tokenizer.encode_special
        rng = torch.Generator(device=device).manual_seed(seed)
        shape = {
            "num_heads": config.n_kv_head,
            "head_dim": config.n_embd // config.n_head,
            "num_layers": config.n_layer,
        }
        first = KVCache(batch_size=1, seq_len=len(tokens), device=device, **shape)
        logits = self.model.forward(torch.tensor([tokens], device=device), kv_cache=first)[:, -1]
        cache = KVCache(batch_size=1, seq_len=len(tokens) + max_tokens, device=device, **shape)
        cache.prefill(first)
        state = RowState(list(tokens))
        for _ in range(max_tokens):
            token = int(sample_next_token(logits, rng, temperature, top_k))
            token = state.forced_tokens.popleft() if state.forced_tokens else token
            if token == special("<|python_start|>"):
                state.in_python_block, state.python_expr_tokens = True, []
            elif token == special("<|python_end|>") and state.in_python_block:
                state.in_python_block = False
                result = use_calculator(self.tokenizer.decode(state.python_expr_tokens))
                if result is not None:
                    output = self.tokenizer.encode(str(result))
                    state.forced_tokens.extend([special("<|output_start|>"), *output, special("<|output_end|>")])
            elif state.in_python_block:
                state.python_expr_tokens.append(token)
            yield [token], [1]
            if token == special("<|assistant_end|>"):
                return
            logits = self.model.forward(torch.tensor([[token]], device=device), kv_cache=cache)[:, -1]
