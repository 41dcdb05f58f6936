"""What the documents tell people to type exists: every command line is known to its parser. tests/docs/ runs them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ci.__main__ import COMMANDS as STAGES
from flash_attn3_sm121.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_the_documents_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"\bflash-attn3 ([a-z][a-z-]*[a-z])\b", text):
        assert name in COMMANDS, f"{page.name} says flash-attn3 {name}"
    for name in re.findall(r"python -m ci ([a-z][a-z-]*[a-z])\b", text):
        assert name in STAGES, f"{page.name} says python -m ci {name}"
    blocks = "".join(re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL))  # prose may begin a line with "make"
    target = r"make ([a-z][a-z-]*[a-z])\b(?!-)"
    for name in (*re.findall(f"`{target}", text), *re.findall(f"^{target}", blocks, re.MULTILINE)):
        assert re.search(rf"^{name}:", MAKEFILE, re.MULTILINE), f"{page.name} says make {name}"
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
