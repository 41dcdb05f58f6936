"""What a nanochat checkout can load, read from its source text: it differs between versions. Nothing is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Layout = Literal["classic", "experiments"]
# Calls that make parameters, by the end of their name.
_MAKES_PARAMETERS = ("Linear", "Embedding", "Parameter")


@dataclass(frozen=True, kw_only=True)
class Code:
    """What was read. Empty sets mean that it could not be read, and that nothing is judged by it.

    Attributes:
        layout: how checkpoints are kept.
        folders: of the classic layout, the folder of each stage of training that `load_model` knows.
        fields: what `GPTConfig` takes.
        parts: names of the modules and parameters that `GPT` is made of.
        supplied: parts that the loader adds to a checkpoint which lacks them.
        words: every word of the model's source.
    """

    layout: Layout
    folders: dict[str, str]
    fields: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()
    supplied: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()


def _tree(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None


def _folders(tree: ast.Module | None) -> dict[str, str]:
    """The table in `load_model` that has the folder of each stage."""
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.Dict):
            pairs = [
                (key.value, value.value)
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant)
            ]
            if any(str(folder).endswith("_checkpoints") for _, folder in pairs):
                return {str(source): str(folder) for source, folder in pairs}
    return {}


def _makes_parameters(node: ast.AST) -> bool:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call):
            name = inner.func.attr if isinstance(inner.func, ast.Attribute) else getattr(inner.func, "id", "")
            if name.endswith(_MAKES_PARAMETERS):
                return True
    return False


def _parts(tree: ast.Module) -> Iterator[str]:
    """`self.NAME = ... Linear(...)`, and the names in a dictionary of modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _makes_parameters(node.value):
            for target in node.targets:
                if isinstance(target, ast.Attribute):
                    yield target.attr
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str) and _makes_parameters(value):
                    yield key.value


def _fields(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == "GPTConfig":
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    yield line.target.id


def _supplied(tree: ast.Module | None) -> Iterator[str]:
    """Names in `if "NAME" not in ...`."""
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.NotIn) and isinstance(node.left, ast.Constant):
            yield str(node.left.value)


def read_code(root: Path) -> Code | None:
    """Read a checkout.

    Returns:
        What it can load; None where its checkpoints are kept in no way that this page knows.
    """
    manager = _tree(root / "nanochat" / "checkpoint_manager.py")
    folders = _folders(manager)
    layout: Layout = "classic"
    if not folders:
        common = root / "nanochat" / "common.py"
        if not common.is_file() or "get_experiment_dir" not in common.read_text(encoding="utf-8", errors="replace"):
            return None
        layout = "experiments"
    model = root / "nanochat" / "gpt.py"
    tree = _tree(model)
    if tree is None:
        return Code(layout=layout, folders=folders)
    return Code(
        layout=layout,
        folders=folders,
        fields=frozenset(_fields(tree)),
        parts=frozenset(_parts(tree)),
        supplied=frozenset(_supplied(manager)),
        words=frozenset(re.findall(r"\w+", model.read_text(encoding="utf-8"))),
    )
