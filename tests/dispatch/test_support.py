"""The README's support table is the arch table's, to the letter."""

from __future__ import annotations

from pathlib import Path

import pytest

from flash_attn3_sm121.dispatch import support
from flash_attn3_sm121.errors import TableError

ROOT = Path(__file__).resolve().parents[2]


def test_readme_holds_the_generated_table() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert support.inserted(text, name="README.md") == text, (
        "python -m flash_attn3_sm121.dispatch.support --write README.md"
    )


def test_a_stale_table_is_mended(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"top\n{support.BEGIN}\nstale\n{support.END}\nbottom\n", encoding="utf-8")
    assert support.main(["--write", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("top\n") and "GB10" in text and "stale" not in text and text.endswith("bottom\n")


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(TableError, match="once each"):
        support.main(["--write", str(page)])
