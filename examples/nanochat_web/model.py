"""nanochat's model, tokenizer and engine, in nanochat's own Python: loading, prompts, and who serves attention."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

OURS = "flash_attn3_sm121"
END_TOKENS = ("<|assistant_end|>",)
# A calculator call in an answer. Its marks are single tokens to the model; only there, never in what people write.
_TOOL = re.compile(r"(<\|(?:python_start|python_end|output_start|output_end)\|>)")


class Model:
    """nanochat's model, tokenizer and engine behind what this program needs of them."""

    def __init__(self, args: argparse.Namespace, stage: Callable[[str], None]) -> None:
        stage("importing torch")
        import torch

        stage("importing nanochat")
        common = importlib.import_module("nanochat.common")
        classic = importlib.util.find_spec("nanochat.checkpoint_manager") is not None
        runtime = common if classic else importlib.import_module("harness.runtime")
        loader = importlib.import_module("nanochat.checkpoint_manager" if classic else "harness.checkpoint")
        engine = importlib.import_module("nanochat.engine")
        device_type = args.device or runtime.autodetect_device_type()
        self.device = runtime.compute_init(device_type)[4]
        stage(f"loading {args.tag}, step {args.step}, onto {device_type}")
        phase = {"phase": "eval"} if classic else {}
        self.model, self.tokenizer, self.meta = loader.load_model(
            args.source, self.device, model_tag=args.tag, step=args.step, **phase
        )
        self.engine_module = engine
        self.engine = engine.Engine(self.model, self.tokenizer)
        self.style = args.style
        # Newer nanochat computes in a dtype of its own choice; before, the caller had to ask for bf16 on a GPU.
        self.autocast = device_type == "cuda" and not hasattr(common, "COMPUTE_DTYPE")
        self.compute_dtype = getattr(
            common, "COMPUTE_DTYPE", torch.bfloat16 if device_type == "cuda" else torch.float32
        )
        self.bos = self.tokenizer.get_bos_token_id()
        self.ends = {self.bos, *(self.tokenizer.encode_special(name) for name in END_TOKENS)}
        self.context = int(self.model.config.sequence_len)

    def precision(self) -> Any:
        import torch

        return torch.autocast("cuda", torch.bfloat16) if self.autocast else contextlib.nullcontext()

    def answer_tokens(self, text: str) -> list[int]:
        """An answer as the model wrote it: calculator calls with the special tokens that they were made of."""
        tokens: list[int] = []
        for piece in _TOOL.split(text):
            if _TOOL.fullmatch(piece):
                tokens.append(self.tokenizer.encode_special(piece))
            elif piece:
                tokens += self.tokenizer.encode(piece)
        return tokens

    def turn(self, message: dict[str, str], first: bool) -> list[int]:
        """The tokens of one message. A base model has never seen a chat: it gets plain text to go on with."""
        text, special = message["content"], self.tokenizer.encode_special
        mine = message["role"] == "assistant"
        if self.style == "text":
            return list(self.tokenizer.encode(text if first or mine else f"\n\n{text}"))
        body = self.answer_tokens(text) if mine else self.tokenizer.encode(text)
        return [special(f"<|{message['role']}_start|>"), *body, special(f"<|{message['role']}_end|>")]

    def prompt(self, messages: list[dict[str, str]], wanted: int, *, extend: bool = False) -> tuple[list[int], int]:
        """The prompt that fits into the model's context, and how many old messages had to go for that.

        `extend`: the last message is an answer that was cut off, to be continued.
        """
        turns = [self.turn(message, at == 0) for at, message in enumerate(messages)]
        opening = [] if self.style == "text" else [self.tokenizer.encode_special("<|assistant_start|>")]
        if extend and self.style == "chat":
            turns[-1], opening = turns[-1][:-1], []
        last = 2 if extend else 1  # so many messages at the end stay whole
        room = self.context - min(wanted, self.context // 4) - len(opening) - 1
        dropped = 0
        while sum(map(len, turns)) > room and len(turns) > last:
            # Whole exchanges, so that what is left begins with a question again.
            many = min(2 if self.style == "chat" else 1, len(turns) - last)
            turns, dropped = turns[many:], dropped + many
        if sum(map(len, turns)) > room:
            what = "your message and the answer so far are" if extend else "your message is"
            raise ValueError(
                f"{what} {sum(map(len, turns))} tokens long and this model reads {self.context}, "
                f"with {self.context - room} of them kept for the answer: shorten it"
            )
        return [self.bos, *(token for turn in turns for token in turn), *opening], dropped

    def facts(self) -> dict[str, Any]:
        import torch

        return {
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device),
            "torch": torch.__version__,
            "python": ".".join(str(part) for part in sys.version_info[:3]),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "context": self.context,
        }


def holders() -> list[str]:
    """Where nanochat keeps a module of ours: what get_kernel really handed out."""
    found = []
    for name, module in list(sys.modules.items()):
        if name == "nanochat" or name.startswith("nanochat."):
            for attribute, value in list(vars(module).items()):
                if isinstance(value, types.ModuleType) and value.__name__.split(".")[0].startswith(OURS):
                    found.append(f"{name}.{attribute}")
    return sorted(found)


def explained(package: Any, loaded: Model) -> Any:
    """What `explain` says to one step of decoding in this model's shapes."""
    import torch

    config = loaded.model.config
    dim, dtype = config.n_embd // config.n_head, loaded.compute_dtype

    def empty(heads: int, length: int) -> Any:
        return torch.zeros(1, length, heads, dim, dtype=dtype, device=loaded.device)

    windows = getattr(loaded.model, "window_sizes", None)
    extra = {"window_size": tuple(windows[0])} if windows else {}
    keys = empty(config.n_kv_head, 1)
    return package.explain(
        empty(config.n_head, 1),
        *(empty(config.n_kv_head, 16) for _ in range(2)),
        k_new=keys,
        v_new=keys,
        cache_seqlens=torch.ones(1, dtype=torch.int32, device=loaded.device),
        causal=True,
        **extra,
    )


def attention(loaded: Model) -> dict[str, Any]:
    """What serves nanochat's attention and why, gathered; the server makes the sentence."""
    facts: dict[str, Any] = {"holders": holders(), "package": None, "error": None}
    try:
        package = importlib.import_module(OURS)
    except ImportError as error:
        return {**facts, "error": f"{OURS} cannot be imported in {sys.executable}: {error}"}
    facts.update(package=package.__version__, path=str(Path(str(package.__file__)).parent))
    try:
        told = explained(package, loaded)
    except (RuntimeError, ValueError, TypeError, AttributeError, ImportError) as error:
        return {**facts, "error": f"explain: {type(error).__name__}: {error}"}  # no reason not to chat
    choice = told.forward
    return {
        **facts,
        "backend": choice.backend,
        "forced": choice.forced,
        "family": choice.family,
        "code": choice.code,
        "refusals": [[refusal.backend, refusal.reason] for refusal in choice.refusals],
        "where": told.device.name or told.device.type,
        "capability": told.device.capability,
        "text": str(told),
    }
