"""What needs a newer torch: one table for the page, `explain`, `doctor` and the torch at hand."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from flash_attn3_sm121.api.explanation import explain
from flash_attn3_sm121.call.torches import SINCE, lacking
from flash_attn3_sm121.doctor.probes import QUESTIONS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "clients.md").read_text(encoding="utf-8")
NEEDS = {"torch.nn.attention": "restore_flash_attention_impl", "torch.nn.attention.varlen": "varlen_attn_out"}


def test_the_page_has_the_same_rows() -> None:
    table = PAGE.partition("| what | from torch | before |\n")[2].partition("\n\n")[0].splitlines()[1:]
    assert table == [f"| {row.what} | {row.torch[0]}.{row.torch[1]} | {row.before} |" for row in SINCE]


def has(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        return False


def test_the_torch_at_hand_is_as_the_table_says() -> None:
    here = lacking(torch.__version__)
    assert [any(name in line for line in here) for name in NEEDS.values()] == [not has(*need) for need in NEEDS.items()]


@pytest.mark.parametrize(
    "version,count", [("2.9.1+cu128", 2), ("2.11.0", 1), ("2.12.1", 0), ("2.15.0a0+git1", 0), ("main", 0)]
)
def test_an_older_torch_is_told(version: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = lacking(version)
    assert len(found) == count and all(f"and this is {version}: " in line for line in found)
    monkeypatch.setattr(torch, "__version__", version)
    assert set(found) <= set(explain(capability=(12, 1)).notes)
    assert QUESTIONS["torch_hook"]()["why"] == "; ".join(found)
