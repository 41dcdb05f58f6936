"""The names of torch that are private to it and used here: a torch that lacks one is noticed by this list."""

from __future__ import annotations

import ast
import importlib
import warnings
from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import pytest
import torch

PACKAGE = Path(__file__).resolve().parents[2] / "flash_attn3_sm121"
USED = {
    "torch._C._are_functorch_transforms_active",
    "torch._C._dispatch_has_kernel",
    "torch._C._jit_get_schemas_for_operator",
    "torch._C._len_torch_dispatch_stack",
    "torch._assert_async",
    "torch._dynamo.exc.TorchDynamoException",
    "torch._guards.TracingContext.extract_stack",
    "torch._inductor.compile_fx.compile_fx",
    "torch.ops.aten._flash_attention_backward.default",
    "torch.ops.aten._flash_attention_forward.default",
    "torch.ops.aten._scaled_dot_product_efficient_attention.default",
    "torch.ops.aten._scaled_dot_product_efficient_attention_backward.default",
    "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default",
    "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default",
    "torch.utils._python_dispatch.TorchDispatchMode",
}
# Asked for by getattr, with an answer for a torch that lacks it.
ASKED = {"torch._C._is_any_autocast_enabled"}


def chain(node: ast.expr) -> str:
    """a.b.c of the expression; an empty string where it is none."""
    if isinstance(node, ast.Attribute):
        before = chain(node.value)
        return before and f"{before}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def names_in(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute):
            yield chain(node)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def private(name: str) -> bool:
    first, *rest = name.split(".")
    return first == "torch" and any(part.startswith("_") and not part.startswith("__") for part in rest)


def test_the_list_is_whole() -> None:
    found = {name for path in PACKAGE.rglob("*.py") for name in names_in(path.read_text(encoding="utf-8"))}
    found = {name for name in found if private(name)}
    assert {name for name in found if not any(other.startswith(f"{name}.") for other in (*found, *ASKED))} == USED


@pytest.mark.parametrize("name", sorted(USED | ASKED))
def test_this_torch_has_it(name: str) -> None:
    if name.startswith(("torch._dynamo", "torch._inductor")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of torch.jit
            importlib.import_module(name.rpartition(".")[0])
    assert reduce(getattr, name.split(".")[1:], torch) is not None
