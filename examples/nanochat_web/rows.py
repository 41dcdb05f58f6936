"""Several chats of one model decoded as one batch, each with a length of its own; in nanochat's own Python.

nanochat's model takes a batch, but reads one position for all of it (`kv_cache.get_pos()`), to look up the rotary
table. Here that position is always 0, and for the time of a call the table holds one line for each chat: the line of
its own position. The lengths themselves reach the attention kernels as `cache_seqlens`, which is a list anyway.
Nothing of nanochat is changed; what its engine does to the tokens of one chat is done with the engine's own functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from nanochat_web.model import Model

READ_AT_ONCE = 2048  # tokens of new prompts that are read between two steps of the others
GRAIN = 128  # the cache grows by so many tokens
NEEDED = ("KVCache", "RowState", "use_calculator", "sample_next_token")


@dataclass(kw_only=True, eq=False)
class Row:
    """One chat: its place in the batch is its place in the list of rows."""

    name: str
    prompt: list[int]
    limit: int
    temperature: float
    top_k: int | None
    rng: Any
    state: Any
    length: int = 0  # tokens of it in the cache
    made: int = 0
    token: int | None = None  # made, not yet read by the model
    logits: Any = None
    problem: Exception | None = None


@dataclass
class View:
    """What nanochat's model sees as its cache: some neighbouring rows of the storage."""

    k: Any
    v: Any
    cache_seqlens: Any
    n_layers: int
    max_seq_len: int
    prev_embedding: Any = None  # newer nanochat mixes the token before into each; None where there is none yet

    def get_pos(self) -> int:
        return 0

    def get_layer_cache(self, layer: int) -> tuple[Any, Any]:
        return self.k[layer], self.v[layer]

    def advance(self, count: int) -> None:
        self.cache_seqlens += count  # of this call only: each row keeps its length itself


@dataclass
class Storage:
    """Keys and values of all rows. It grows when it must, and is given back when no chat is left."""

    config: Any
    device: Any
    dtype: Any
    k: Any = None
    v: Any = None
    before: Any = None  # prev_embedding of every row

    def fit(self, rows: int, length: int) -> None:
        import torch

        have_rows, have_length = (0, 0) if self.k is None else (self.k.shape[1], self.k.shape[2])
        if rows <= have_rows and length <= have_length:
            return
        rows = have_rows if rows <= have_rows else max(rows, min(2 * have_rows, have_rows + 8))
        length = max(have_length, -(-length // GRAIN) * GRAIN)
        c = self.config
        shape = (c.n_layer, rows, length, c.n_kv_head, c.n_embd // c.n_head)
        for name in ("k", "v"):
            made = torch.zeros(shape, dtype=self.dtype, device=self.device)
            if have_rows:
                made[:, :have_rows, :have_length] = getattr(self, name)
            setattr(self, name, made)
        if self.before is not None:
            grown = self.before.new_zeros((rows, *self.before.shape[1:]))
            grown[:have_rows] = self.before
            self.before = grown

    def view(self, first: int, lengths: list[int], *, new: bool) -> View:
        import torch

        last = first + len(lengths)
        seen = None if new or self.before is None else self.before[first:last]
        return View(
            k=self.k[:, first:last],
            v=self.v[:, first:last],
            cache_seqlens=torch.tensor(lengths, dtype=torch.int32, device=self.device),
            n_layers=self.config.n_layer,
            max_seq_len=self.k.shape[2],
            prev_embedding=seen,
        )

    def keep(self, first: int, view: View) -> None:
        """What the model left in a view beside keys and values."""
        if view.prev_embedding is None:
            return
        if self.before is None:
            self.before = view.prev_embedding.new_zeros((self.k.shape[1], *view.prev_embedding.shape[1:]))
        self.before[first : first + view.prev_embedding.shape[0]] = view.prev_embedding

    def move(self, source: int, target: int, length: int) -> None:
        if self.k is None:
            return
        for tensor in (self.k, self.v):
            tensor[:, target, :length] = tensor[:, source, :length]
        if self.before is not None:
            self.before[target] = self.before[source]


@dataclass
class Rows:
    """The batch. `step` makes one token for every chat in it."""

    model: Model
    storage: Storage
    rows: list[Row] = field(default_factory=list)
    waiting: list[Row] = field(default_factory=list)

    @classmethod
    def of(cls, model: Model) -> Rows:
        """A batch for this model.

        Raises:
            ValueError: this nanochat has not what it takes; the message says what.
        """
        engine = model.engine_module
        missing = [name for name in NEEDED if not hasattr(engine, name)]
        if missing:
            raise ValueError(f"nanochat.engine has no {', '.join(missing)}")
        table = getattr(model.model, "cos", None)
        if table is None or table.ndim != 4 or (table.shape[0], table.shape[2]) != (1, 1):
            raise ValueError("the model has no rotary table of the form that is known")
        default = inspect.signature(engine.KVCache.__init__).parameters["dtype"].default
        dtype = model.compute_dtype if default is inspect.Parameter.empty else default
        return cls(model=model, storage=Storage(config=model.model.config, device=model.device, dtype=dtype))

    # -- chats come and go

    def add(self, name: str, prompt: list[int], limit: int, order: dict[str, Any]) -> None:
        import torch

        rng = torch.Generator(device=self.model.device)
        rng.manual_seed(int(order["seed"]))
        row = Row(
            name=name,
            prompt=prompt,
            limit=limit,
            temperature=float(order["temperature"]),
            top_k=int(order["top_k"]) or None,
            rng=rng,
            state=self.model.engine_module.RowState(list(prompt)),
        )
        self.waiting.append(row)

    def remove(self, name: str) -> None:
        self.waiting = [row for row in self.waiting if row.name != name]
        place = next((at for at, row in enumerate(self.rows) if row.name == name), None)
        if place is None:
            return
        last = self.rows.pop()
        if place < len(self.rows):  # the last one takes the place that became free
            self.storage.move(len(self.rows), place, last.length)
            self.rows[place] = last
        if not self.rows:
            self.storage = Storage(config=self.storage.config, device=self.storage.device, dtype=self.storage.dtype)

    # -- the work

    def step(self) -> Iterator[tuple[str, int | None | Exception]]:
        """For each chat its next token, None where it has had as many as it may, or the error that ends it.

        New chats come last, one after the other, and each has its first token as soon as its prompt was read.
        """
        self._read_tokens()
        yield from self._next(list(self.rows))
        budget = READ_AT_ONCE
        while self.waiting and budget > 0:
            row = self.waiting.pop(0)
            budget -= len(row.prompt)
            self._read_prompt(row)
            yield from self._next([row])

    def _next(self, rows: list[Row]) -> Iterator[tuple[str, int | None | Exception]]:
        ready = [row for row in rows if row.problem is None and row.made < row.limit]
        for row, token in zip(ready, self._sampled(ready), strict=True):
            row.token = self._followed(row, token)
            row.made += 1
            yield row.name, row.token
        for row in rows:
            if row not in ready:
                yield row.name, row.problem

    def _read_tokens(self) -> None:
        """One call of the model for the last token of every row. Where it fails, each by itself shows which it was."""
        rows = self.rows
        if not rows:
            return
        try:
            self._forward(0, rows)
        except RuntimeError as error:
            if "CUDA error" in str(error):
                raise
            for place, row in enumerate(rows):
                try:
                    self._forward(place, [row])
                except RuntimeError as alone:
                    row.problem = alone
        for row in rows:
            row.length += 1

    def _read_prompt(self, row: Row) -> None:
        place = len(self.rows)
        self.rows.append(row)
        try:
            self.storage.fit(len(self.rows), max(len(one.prompt) + one.limit for one in self.rows))
            row.logits = self._call([row.prompt], self.storage.view(place, [0], new=True), place)
            row.length = len(row.prompt)
        except RuntimeError as error:
            if "CUDA error" in str(error):
                raise
            row.problem = error

    def _forward(self, first: int, rows: list[Row]) -> None:
        lengths = [row.length for row in rows]
        view = self.storage.view(first, lengths, new=False)
        with self._own_positions(lengths):
            logits = self._call([[row.token] for row in rows], view, first)
        for at, row in enumerate(rows):
            row.logits = logits[at : at + 1]

    def _call(self, tokens: list[list[Any]], view: View, first: int) -> Any:
        import torch

        with torch.inference_mode(), self.model.precision():
            ids = torch.tensor(tokens, dtype=torch.long, device=self.model.device)
            logits = self.model.model.forward(ids, kv_cache=view)[:, -1, :]
            self.storage.keep(first, view)
        return logits

    @contextmanager
    def _own_positions(self, lengths: list[int]) -> Iterator[None]:
        """The rotary table, with one line for each row instead of one for each position."""
        import torch

        model = self.model.model
        whole = model.cos, model.sin
        places = torch.tensor(lengths, dtype=torch.long, device=self.model.device)
        model.cos, model.sin = (table[0, places].unsqueeze(1) for table in whole)
        try:
            yield
        finally:
            model.cos, model.sin = whole

    def _sampled(self, rows: list[Row]) -> list[int]:
        import torch

        if not rows:
            return []
        sample = self.model.engine_module.sample_next_token
        with torch.inference_mode():
            chosen = [sample(row.logits, row.rng, row.temperature, row.top_k) for row in rows]
            return [int(token) for token in torch.cat(chosen)[:, 0].tolist()]

    def _followed(self, row: Row, sampled: int) -> int:
        """nanochat's way with calculator calls: what the tool says is put in place of what was sampled."""
        state, tokenizer = row.state, self.model.tokenizer
        special = tokenizer.encode_special
        token: int = state.forced_tokens.popleft() if state.forced_tokens else sampled
        if token == special("<|python_start|>"):
            state.in_python_block, state.python_expr_tokens = True, []
        elif token == special("<|python_end|>") and state.in_python_block:
            state.in_python_block = False
            asked, state.python_expr_tokens = state.python_expr_tokens, []
            told = self.model.engine_module.use_calculator(tokenizer.decode(asked)) if asked else None
            if told is not None:
                output = tokenizer.encode(str(told))
                state.forced_tokens.extend([special("<|output_start|>"), *output, special("<|output_end|>")])
        elif state.in_python_block:
            state.python_expr_tokens.append(token)
        return token

    # -- is it right?

    def difference(self) -> float:
        """How far two chats of unlike lengths in one batch are from each alone, as a part of the logits' range."""
        size = int(self.model.model.config.vocab_size)
        prompts = [[(7 * at + 3) % size for at in range(1, count + 1)] for count in (9, 4)]
        order = {"seed": 1, "temperature": 0.0, "top_k": 0}
        alone = [self._logits_after([prompt], order)[0] for prompt in prompts]
        together = self._logits_after(prompts, order)
        return max(
            float((one - two).abs().max() / one.abs().max().clamp_min(1e-9))
            for one, two in zip(alone, together, strict=True)
        )

    def _logits_after(self, prompts: list[list[int]], order: dict[str, Any]) -> list[Any]:
        """The last logits after each prompt and three more tokens, the same for all ways of asking."""
        for at, prompt in enumerate(prompts):
            self.add(str(at), prompt, 8, order)
        while self.waiting:
            self._read_prompt(self.waiting.pop(0))
        for row in self.rows:
            if row.problem is not None:
                raise row.problem
        for number in range(3):
            for row in self.rows:
                row.token = row.prompt[number]
            self._read_tokens()
        found = [row.logits.float().clone() for row in self.rows]
        for at in range(len(prompts)):
            self.remove(str(at))
        return found
