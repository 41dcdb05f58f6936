"""Which checkpoints can be loaded, judged before anybody waits for one. One that cannot says why, and what to do."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from . import weights
from .checkout import Checkout
from .checkpoints import COPY_AGAIN, Checkpoint, Problem
from .nanochat_code import Code

FRESH = 1.5  # seconds for which a list is good: thirty open pages ask for it all the time
ASK_AGAIN = 20.0  # after which a tokenizer that could not be loaded is tried again
_ASK = "from nanochat.tokenizer import get_tokenizer; print('entries', get_tokenizer().get_vocab_size())"


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """The size of a tokenizer's vocabulary, or why there is none."""

    entries: int | None
    problem: Problem | None = None


def unknown_stage(checkpoint: Checkpoint, code: Code) -> Problem | None:
    """A folder of a stage that this nanochat no longer has."""
    name = checkpoint.source.name
    if code.layout != "classic" or name in code.folders:
        return None
    return Problem(
        what=f"this nanochat does not load {name} models (it knows {', '.join(code.folders)})",
        remedy=f"Choose a model of another stage, or check out the version of nanochat that trained it: "
        f"`git log --oneline -S '\"{name}\"' -- nanochat/checkpoint_manager.py` finds where that ended.",
    )


def unlike_code(checkpoint: Checkpoint, names: frozenset[str], code: Code, root: Path) -> Problem | None:
    """A model that another version of nanochat made: it has what this one does not know, or lacks what it needs."""
    strange = sorted(set(checkpoint.config) - code.fields) if code.fields else []
    lacks: list[str] = []
    if code.parts and names:
        found = weights.parts(names)
        strange += sorted(found - code.words)
        lacks = sorted(code.parts - found - code.supplied)
    if not strange and not lacks:
        return None
    told = [f"it lacks {_some(lacks)}"] if lacks else []
    told += [f"it has {_some(strange)}, unknown here"] if strange else []
    return Problem(
        what=f"another version of nanochat made it: {'; '.join(told)}",
        remedy=f"Check out the version that trained it (in {root}: `git log`, `git checkout`), or train it again.",
    )


def _some(words: Iterable[str]) -> str:
    listed = list(words)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")


def unlike_tokenizer(checkpoint: Checkpoint, tokenizer: Tokenizer, folder: Path) -> Problem | None:
    """A tokenizer that is missing, or was trained again since."""
    if tokenizer.entries is None:
        return tokenizer.problem
    wanted = checkpoint.config.get("vocab_size")
    if not isinstance(wanted, int) or wanted == tokenizer.entries:
        return None
    return Problem(
        what=f"it was trained with a vocabulary of {wanted:,} entries, and the tokenizer in {folder} has "
        f"{tokenizer.entries:,}",
        remedy=f"Put the tokenizer that it was trained with back into {folder}; one that was trained later fits only "
        "models that were trained after it.",
    )


class Catalog:
    """The list of models, kept for a moment. May be asked from several threads."""

    def __init__(self, checkout: Checkout) -> None:
        self.checkout = checkout
        self._lock = threading.Lock()
        self._list: tuple[Checkpoint, ...] = ()
        self._until = 0.0
        self._files: dict[tuple[Path, int, float], frozenset[str] | Problem] = {}
        self._tokenizers: dict[Path, tuple[tuple[float, ...], float, Tokenizer]] = {}

    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """Every checkpoint, those to talk to first; what is wrong with one is in its `problem`."""
        with self._lock:
            if time.monotonic() > self._until:
                self._list = tuple(self._judged(checkpoint) for checkpoint in self.checkout.found())
                self._until = time.monotonic() + FRESH
            return self._list

    def _judged(self, checkpoint: Checkpoint) -> Checkpoint:
        code = self.checkout.code
        problem = checkpoint.problem or unknown_stage(checkpoint, code)
        if problem is None:
            names = self._names(checkpoint)
            problem = names if isinstance(names, Problem) else unlike_code(checkpoint, names, code, self.checkout.root)
        if problem is None:
            folder = self.checkout.tokenizer(checkpoint)
            problem = unlike_tokenizer(checkpoint, self._tokenizer(checkpoint, folder), folder)
        return checkpoint if problem is None else replace(checkpoint, problem=problem)

    def _names(self, checkpoint: Checkpoint) -> frozenset[str] | Problem:
        """Read once as long as the file stays the same."""
        key = (checkpoint.file, checkpoint.size, checkpoint.modified)
        if key not in self._files:
            try:
                self._files[key] = weights.tensor_names(checkpoint.file)
            except weights.Unreadable as error:
                age = time.time() - checkpoint.modified
                written = " (it is perhaps still being written)" if age < 60 else ""
                return Problem(what=f"{checkpoint.file.name} is incomplete{written}: {error}", remedy=COPY_AGAIN)
            except OSError as error:
                return Problem(what=f"{checkpoint.file.name} cannot be read: {error.strerror}", remedy=COPY_AGAIN)
        return self._files[key]

    def _tokenizer(self, checkpoint: Checkpoint, folder: Path) -> Tokenizer:
        """Asked of nanochat itself, in its own Python, whenever the folder has changed."""
        stamp = _stamp(folder)
        known = self._tokenizers.get(folder)
        if known is not None and known[0] == stamp and (known[2].entries is not None or time.monotonic() < known[1]):
            return known[2]
        told = self._ask_tokenizer(checkpoint, folder)
        self._tokenizers[folder] = (stamp, time.monotonic() + ASK_AGAIN, told)
        return told

    def _ask_tokenizer(self, checkpoint: Checkpoint, folder: Path) -> Tokenizer:
        try:
            done = subprocess.run(
                [str(self.checkout.python), "-c", _ASK],
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
                cwd=self.checkout.root,
                env=self.checkout.environment(checkpoint, os.environ),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return Tokenizer(
                entries=None,
                problem=Problem(
                    what=f"nanochat's tokenizer could not be asked: {error}", remedy=f"Try `{self.checkout.python} -V`."
                ),
            )
        if found := re.search(r"^entries (\d+)$", done.stdout, re.MULTILINE):
            return Tokenizer(entries=int(found[1]))
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
        return Tokenizer(entries=None, problem=_tokenizer_problem(last, folder, self.checkout.root))


def _tokenizer_problem(last: str, folder: Path, root: Path) -> Problem:
    if last.startswith("FileNotFoundError") or not folder.is_dir():
        return Problem(
            what=f"its tokenizer is not there: {folder}",
            remedy=f"Copy the folder `tokenizer` from where the model was trained to {folder}.",
        )
    if "No module named" in last:
        return Problem(
            what=f"nanochat's tokenizer cannot be loaded: {last}", remedy=f"In {root}: `uv sync --extra gpu`."
        )
    return Problem(
        what=f"the tokenizer in {folder} cannot be loaded: {last[:300]}",
        remedy=f"Copy the folder `tokenizer` again from where the model was trained to {folder}.",
    )


def _stamp(folder: Path) -> tuple[float, ...]:
    """Changes whenever a file of the folder does."""
    try:
        return tuple(
            number for entry in sorted(folder.iterdir()) for number in (entry.stat().st_mtime, entry.stat().st_size)
        )
    except OSError:
        return ()
