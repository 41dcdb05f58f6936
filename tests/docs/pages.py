"""The documents as data: their Python blocks, and the command lines that they tell people to type."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "third_party" / "flash-attention" / "README.md",
    ROOT / "wheels" / "README.md",
    ROOT / "csrc" / "README.md",
    ROOT / "examples" / "nanochat_web" / "README.md",
]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_INDENTED = re.compile(r"^ {4,}(\S.*)$", re.MULTILINE)

# What makes a text a command line: its first word. `hub serve` and the like name a subcommand in passing.
PROGRAMS = (
    "make",
    "python",
    "python3",
    "flash-attn3",
    "pip",
    "pre-commit",
    "gh",
    "git",
    "cp",
    "hf",
    "aws",
    "rsync",
    "export",
    "apt-get",
    "curl",
    ".ci/run",
    ".ci/as-root",
    ".ci/packages",
)
_COMMAND = re.compile(r"(?:[A-Z][A-Z0-9_]*=\S* )*(?:" + "|".join(re.escape(name) for name in PROGRAMS) + r")(?= |$)")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [text for found, text in _FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def section(page: Path, heading: str) -> str:
    """The one Python block under a heading."""
    _, found, rest = page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    assert found, f"{page.name} has no section {heading!r}"
    (block,) = (text for language, text in _FENCE.findall(rest.partition("\n## ")[0]) if language == "python")
    return block


def command_of(line: str) -> str | None:
    """The command in a line, its comment taken off; None where there is none."""
    text = re.split(r"(?:^| )\s*#(?: |$)", line, maxsplit=1)[0].strip()
    text = text.removeprefix("$ ")
    return text if _COMMAND.match(text) else None


def commands(text: str) -> list[str]:
    """The commands in a page's blocks, in order, each once: fenced shell, transcripts, indented lines."""
    found: list[str] = []
    fenced = _FENCE.findall(text)
    for language, block in fenced:
        if language == "sh":
            joined = re.sub(r" *\\\n *", " ", block)
            lines = [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]
            found += [command_of(line) or f"not understood: {line}" for line in lines]
        elif language == "console":  # a transcript: what was typed stands behind the prompt
            lines = [line for line in block.splitlines() if line.startswith("$ ")]
            found += [command_of(line) or f"not understood: {line}" for line in lines]
    prose = _FENCE.sub("", text)
    found += [command for line in _INDENTED.findall(prose) if (command := command_of(line))]
    return list(dict.fromkeys(found))


def inline_commands(text: str) -> list[str]:
    """The commands that a page's prose mentions."""
    return [command for code in _INLINE.findall(_FENCE.sub("", text)) if (command := command_of(code))]
