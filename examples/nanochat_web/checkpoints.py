"""The checkpoints of nanochat, found the way nanochat stores them. Only names and meta files are read here.

Two layouts exist: <base>/<source>_checkpoints/<tag>/model_<step>.pt, and on a branch of July 2026
<base>/experiments/<name>/<tag>/<source>/model_<step>.pt. Both may be there at once; a checkout reads only its own.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .nanochat_code import Layout

Style = Literal["chat", "text"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One stage of training, in the word that nanochat's load_model takes."""

    name: str
    title: str
    about: str
    style: Style
    folder: str | None = None  # of the classic layout


# In the order the page shows them: what one can talk to first.
SOURCES: tuple[Source, ...] = (
    Source(name="chat", style="chat", title="Chat", about="fine-tuned on conversations"),
    Source(
        name="sft",
        folder="chatsft_checkpoints",
        style="chat",
        title="Fine-tuned",
        about="fine-tuned on conversations, the one to talk to",
    ),
    Source(
        name="rl",
        folder="chatrl_checkpoints",
        style="chat",
        title="Reinforced",
        about="fine-tuned further by reinforcement learning",
    ),
    Source(
        name="mid",
        folder="mid_checkpoints",
        style="chat",
        title="Mid-trained",
        about="has seen the form of a chat, and is not yet fine-tuned",
    ),
    Source(
        name="base",
        folder="base_checkpoints",
        style="text",
        title="Base",
        about="continues a text, and was never taught to answer",
    ),
)
# Keys of the meta file that hold a validation result, best first, with what they are called on the page.
METRICS = (("val_loss", "validation loss"), ("val_bpb", "validation bits per byte"))
_MODEL_FILE = re.compile(r"model_(\d+)\.pt")
_DEPTH = re.compile(r"d(\d+)")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a checkpoint cannot be loaded: the cause, and the next step to take."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}. {self.remedy}"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One step of one model. `problem` says why it cannot be loaded; `config` is of its meta file."""

    source: Source
    tag: str
    step: int
    size: int
    modified: float
    experiment: str | None = None
    metric: tuple[str, float] | None = None
    layers: int | None = None
    width: int | None = None
    context: int | None = None
    problem: Problem | None = None
    file: Path = Path()
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What the page and the API call it. Only ever looked up in what was found, never made into a path."""
        parts = (self.source.name, self.tag, str(self.step))
        return "/".join(parts if self.experiment is None else (self.experiment, *parts))

    @property
    def version(self) -> str:
        """Changes with the file: one that was trained again is another model, though it is called the same."""
        return f"{self.key} {self.size} {self.modified}"

    @property
    def name(self) -> str:
        return f"{self.tag} · {self.source.title.lower()} · step {self.step:,}"

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.key,
            "name": self.name,
            "source": self.source.name,
            "stage": self.source.title,
            "about": self.source.about,
            "style": self.source.style,
            "tag": self.tag,
            "step": self.step,
            "experiment": self.experiment,
            "metric": None if self.metric is None else {"name": self.metric[0], "value": self.metric[1]},
            "bytes": self.size,
            "modified": self.modified,
            "layers": self.layers,
            "width": self.width,
            "context": self.context,
            "problem": None if self.problem is None else {"what": self.problem.what, "remedy": self.problem.remedy},
        }


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """A folder that may hold steps of one model."""

    folder: Path
    source: Source
    tag: str
    experiment: str | None = None


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(entry for entry in parent.iterdir() if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _shown(folder: Path) -> str:
    """A name that can be written down; for most folders their own."""
    return os.fsencode(folder.name).decode("utf-8", "backslashreplace")


def shelves(base: Path, experiments: Path, layout: Layout) -> Iterator[Shelf]:
    """Every folder that the layout has for checkpoints."""
    if layout == "classic":
        for source in SOURCES:
            if source.folder is not None:
                for folder in _folders(base / source.folder):
                    yield Shelf(folder=folder, source=source, tag=_shown(folder))
        return
    for experiment in _folders(experiments):
        for tag in _folders(experiment):
            for source in SOURCES:
                if (tag / source.name).is_dir():
                    folder = tag / source.name
                    yield Shelf(folder=folder, source=source, tag=_shown(tag), experiment=_shown(experiment))


COPY_AGAIN = "Copy it again from where it was trained, or train it again; `df -h` says whether the disk is full."


def _read_meta(path: Path) -> dict[str, Any] | Problem:
    """The meta file's object, or what is wrong with it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Problem(what=f"{path.name} is missing beside it", remedy=f"nanochat writes both files. {COPY_AGAIN}")
    except (OSError, UnicodeDecodeError) as error:
        return Problem(what=f"{path.name} cannot be read: {error}", remedy=COPY_AGAIN)
    except json.JSONDecodeError as error:
        return Problem(what=f"{path.name} is not JSON (line {error.lineno})", remedy=COPY_AGAIN)
    if not isinstance(data, dict):
        return Problem(what=f"{path.name} holds a {type(data).__name__}, expected an object", remedy=COPY_AGAIN)
    if not isinstance(data.get("model_config"), dict):
        return Problem(what=f"{path.name} has no model_config, from which nanochat builds the model", remedy=COPY_AGAIN)
    return data


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _checkpoint(shelf: Shelf, file: Path, step: int) -> Checkpoint:
    stat = file.stat()
    meta = _read_meta(file.with_name(f"meta_{step:06d}.json"))
    problem = meta if isinstance(meta, Problem) else None
    facts: dict[str, Any] = {} if isinstance(meta, Problem) else meta
    if not {shelf.tag, shelf.experiment or shelf.tag} <= set(file.parts):
        problem = Problem(what="the name of its folder is not UTF-8", remedy="Rename the folder.")
    found = ((title, _number(facts.get(name))) for name, title in METRICS)
    config = facts.get("model_config", {})
    return Checkpoint(
        source=shelf.source,
        tag=shelf.tag,
        step=step,
        experiment=shelf.experiment,
        size=stat.st_size,
        modified=stat.st_mtime,
        metric=next(((title, value) for title, value in found if value is not None), None),
        layers=_whole(config.get("n_layer")),
        width=_whole(config.get("n_embd")),
        context=_whole(config.get("sequence_len")),
        problem=problem,
        file=file,
        config=config,
    )


def _order(checkpoint: Checkpoint) -> tuple[int, int, str, int]:
    depth = _DEPTH.match(checkpoint.tag)
    return (
        SOURCES.index(checkpoint.source),
        -int(depth.group(1)) if depth else 0,
        checkpoint.tag,
        -checkpoint.step,
    )


def discover(base: Path, experiments: Path, layout: Layout) -> tuple[Checkpoint, ...]:
    """Every checkpoint, those to talk to first, the deepest and latest of each kind first."""
    found = []
    for shelf in shelves(base, experiments, layout):
        for file in shelf.folder.glob("model_*.pt"):
            match = _MODEL_FILE.fullmatch(file.name)
            if match is None:
                continue  # nanochat overlooks copies such as model_000200_backup.pt too
            try:
                found.append(_checkpoint(shelf, file, int(match.group(1))))
            except FileNotFoundError:
                continue  # a training run that prunes its old steps was faster than we
    return tuple(sorted(found, key=_order))


def looked_at(base: Path, experiments: Path, layout: Layout) -> tuple[Path, ...]:
    """The folders a person should look into when nothing was found."""
    if layout == "experiments":
        return (experiments,)
    return tuple(base / source.folder for source in SOURCES if source.folder is not None)
