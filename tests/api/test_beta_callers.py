"""Which calls of flash_attn_varlen_func get a tuple: those written as Wan writes them, and no other."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

import flash_attn_interface
import pytest
import torch
from torch import Tensor

import flash_attn3_sm121
from flash_attn3_sm121.api.beta_callers import written_for_beta
from tests.fakes.shapes import packed

CALLERS = """
import flash_attn_interface
from flash_attn_interface import flash_attn_func, flash_attn_varlen_func


def wan(q, k, v, cu):
    return flash_attn_interface.flash_attn_varlen_func(
        q=q,
        k=k, v=v, cu_seqlens_q=cu, cu_seqlens_k=cu,
        max_seqlen_q=5, max_seqlen_k=5)[0].unflatten(0, (2, 5))


def by_name(q, k, v, cu):
    return flash_attn_varlen_func(q, k, v, cu, cu, 5, 5)[0].unflatten(
        0, (2, 5))


def result(q, k, v, cu):
    return flash_attn_interface.flash_attn_varlen_func(q, k, v, cu, cu, 5, 5)


def first_token(q, k, v, cu):
    return flash_attn_interface.flash_attn_varlen_func(q, k, v, cu, cu, 5, 5)[0]


def first_heads(q, k, v, cu):
    return flash_attn_interface.flash_attn_varlen_func(q, k, v, cu, cu, 5, 5)[0].view(4, 2, 8)


def second_token(q, k, v, cu):
    return flash_attn_interface.flash_attn_varlen_func(q, k, v, cu, cu, 5, 5)[1].unflatten(0, (2, 2))


def pair(q, k, v, cu):
    return flash_attn_interface.flash_attn_varlen_func(q, k, v, cu, cu, 5, 5, return_attn_probs=True)[0].unflatten(
        0, (2, 5))


def first_batch(q, k, v, cu):
    return flash_attn_func(q[None], k[None], v[None])[0].unflatten(0, (2, 5))


def both(q, k, v, cu):
    return first_token(q, k, v, cu), wan(q, k, v, cu), result(q, k, v, cu)
"""


@pytest.fixture
def callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = tmp_path / "callers.py"
    path.write_text(CALLERS, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("callers", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "callers", module)  # the compiler imports what it traces through
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def given() -> tuple[Tensor, ...]:
    return packed((5, 5))


def test_only_wans_way_of_writing_gets_a_tuple(callers: ModuleType, given: tuple[Tensor, ...]) -> None:
    *_, cu = given
    right = flash_attn3_sm121.flash_attn_varlen_func(*given, cu, 5, 5)
    for name in ("wan", "by_name", "pair"):
        torch.testing.assert_close(getattr(callers, name)(*given), right.unflatten(0, (2, 5)))
    torch.testing.assert_close(callers.result(*given), right)
    torch.testing.assert_close(callers.first_token(*given), right[0])
    torch.testing.assert_close(callers.first_heads(*given), right[0].view(4, 2, 8))
    torch.testing.assert_close(callers.second_token(*given), right[1].unflatten(0, (2, 2)))
    assert callers.first_batch(*given).shape == (2, 5, 4, 16)
    assert len(written_for_beta(str(callers.__file__))) == 3


def test_two_ways_in_one_compiled_program(callers: ModuleType, given: tuple[Tensor, ...]) -> None:
    compiled = torch.compile(callers.both, backend="eager", fullgraph=True)
    for found, right in zip(compiled(*given), callers.both(*given), strict=True):
        torch.testing.assert_close(found, right)


def test_an_exported_program(callers: ModuleType, given: tuple[Tensor, ...]) -> None:
    class Program(torch.nn.Module):
        def forward(self, *x: Tensor) -> Tensor:
            out: Tensor = callers.wan(*x)
            return out

    for strict in (True, False):
        program = torch.export.export(Program(), given, strict=strict).module()
        torch.testing.assert_close(program(*given), callers.wan(*given))


def test_a_caller_without_a_source(callers: ModuleType, given: tuple[Tensor, ...], tmp_path: Path) -> None:
    """A frozen program's calls cannot be read: they get what upstream returns, and say so themselves."""
    scope: dict[str, object] = {}
    exec(compile(CALLERS, str(tmp_path / "gone.py"), "exec"), scope)
    wan = scope["wan"]
    assert callable(wan)
    with pytest.raises(RuntimeError, match="unflatten"):
        wan(*given)
    broken = tmp_path / "broken.py"
    broken.write_text("%magic\n" + CALLERS, encoding="utf-8")
    assert written_for_beta(str(broken)) == ()


def test_the_function_looks_like_the_public_one() -> None:
    own = flash_attn3_sm121.flash_attn_varlen_func
    assert inspect.signature(flash_attn_interface.flash_attn_varlen_func) == inspect.signature(own)
