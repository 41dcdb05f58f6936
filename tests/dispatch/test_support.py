"""The README's support table is the arch table's, to the letter."""

from __future__ import annotations

from pathlib import Path

import pytest

from flash_attn3_sm121.dispatch import support
from flash_attn3_sm121.errors import TableError

ROOT = Path(__file__).resolve().parents[2]


def test_readme_holds_the_generated_table() -> None:
    assert support.main(["--check", str(ROOT / "README.md")]) == 0


def test_a_stale_table_is_noticed_and_mended(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"top\n{support.BEGIN}\nold\n{support.END}\nbottom\n", encoding="utf-8")
    assert support.main(["--check", str(page)]) == 1
    assert support.main(["--write", str(page)]) == 0
    assert support.main(["--check", str(page)]) == 0
    assert page.read_text(encoding="utf-8").startswith("top\n") and "GB10" in page.read_text(encoding="utf-8")


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(TableError, match="once each"):
        support.main(["--write", str(page)])
