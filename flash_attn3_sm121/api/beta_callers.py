"""Callers of FlashAttention-3's beta, where `flash_attn_varlen_func` returned a pair and `[0]` was the attention.

Wan 2.1 and 2.2, and the many programs that hold a copy of its attention, write

    flash_attn_interface.flash_attn_varlen_func(...)[0].unflatten(0, (b, lq))

Upstream returns a tensor since July 2025, of which `[0]` is the first token, and unflatten then raises. A call that is
written in just this way gets a tuple of one; every other call gets what upstream returns.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import sys
from collections.abc import Callable
from typing import Any

import torch

NAME = "flash_attn_varlen_func"


@functools.cache
def written_for_beta(filename: str) -> tuple[tuple[int, int], ...]:
    """The first and last lines of the calls in a source file that are written for the beta; none without a source."""
    text = "".join(linecache.getlines(filename))
    if NAME not in text or "unflatten" not in text:
        return ()
    try:
        tree = ast.parse(text)
    except SyntaxError:  # the file has changed since it was imported, or is a notebook's cell with magic in it
        return ()
    calls = [_indexed_call(node) for node in ast.walk(tree)]
    return tuple((call.lineno, call.end_lineno or call.lineno) for call in calls if call is not None)


def _indexed_call(node: ast.AST) -> ast.Call | None:
    """The call in `...flash_attn_varlen_func(...)[0].unflatten`, if that is what the node is."""
    match node:
        case ast.Attribute(
            attr="unflatten",
            value=ast.Subscript(
                slice=ast.Constant(value=0),
                value=ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)) as call,
            ),
        ) if name == NAME:
            return call
    return None


def _asked_for_a_pair() -> bool:
    """Whether the call two frames up is written for the beta. A compiler asks once for each call that it traces."""
    traced = [site for site in torch._guards.TracingContext.extract_stack() if site.filename != __file__]
    if traced:
        filename, line = traced[-1].filename, traced[-1].lineno or 0
    else:
        frame = sys._getframe(2)
        filename, line = frame.f_code.co_filename, frame.f_lineno
    return any(first <= line <= last for first, last in written_for_beta(filename))


# What torch.compiler.assume_constant_result sets; that decorator would import the compiler into every process.
_asked_for_a_pair._dynamo_marked_constant = True  # type: ignore[attr-defined]


def also_for_beta_callers(function: Callable[..., Any]) -> Callable[..., Any]:
    """`flash_attn_varlen_func`, with its result in a tuple for the calls that are written for the beta."""

    @functools.wraps(function)
    def flash_attn_varlen_func(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return (result,) if isinstance(result, torch.Tensor) and _asked_for_a_pair() else result

    # inspect.getfullargspec looks behind no wrapper. prime-rl asks it, by ring-flash-attn's get_default_args.
    flash_attn_varlen_func.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return flash_attn_varlen_func
