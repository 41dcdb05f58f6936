"""Edits: small, anchored, checked changes to a build copy of upstream's sources. The pristine tree is never touched.

An anchor is a short piece of the file that must occur exactly as often as the edit says. Where upstream has changed,
the edit that no longer fits fails by its name, before anything is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flash_attn3_sm121.errors import EditError


@dataclass(frozen=True, kw_only=True)
class Change:
    """Replace `anchor` (and what follows it up to and with `until`) wherever it occurs, which must be `count` times."""

    anchor: str
    replacement: str
    count: int = 1
    until: str = ""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Changes to one file that belong together, with the reason for them."""

    name: str
    file: str  # relative to the tree that holds hopper/ and cutlass/
    why: str
    changes: tuple[Change, ...]


def digest(edits: Sequence[Edit]) -> str:
    """A hash of everything that the edits do; reasons are not part of it."""
    content = [{key: value for key, value in asdict(edit).items() if key != "why"} for edit in edits]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def edited_text(edit: Edit, text: str) -> str:
    """The file's new text. Raises EditError naming edit, file, anchor, expected and found counts."""
    for change in edit.changes:
        found = text.count(change.anchor)
        if found != change.count:
            raise _mismatch(edit, f"anchor {change.anchor!r}", expected=change.count, found=found)
        text = _replace(edit, change, text)
    return text


def _replace(edit: Edit, change: Change, text: str) -> str:
    if not change.until:
        return text.replace(change.anchor, change.replacement)
    head, *parts = text.split(change.anchor)
    for part in parts:
        _, end, rest = part.partition(change.until)
        if not end:
            raise _mismatch(edit, f"end {change.until!r} after {change.anchor!r}", expected=1, found=0)
        head += change.replacement + rest
    return head


def _mismatch(edit: Edit, what: str, *, expected: int, found: int) -> EditError:
    return EditError(
        f"edit {edit.name} does not fit {edit.file}: {what}: expected {expected} times, found {found}",
        hint="these sources are not the ones that the edit was written for: see ci/sources/patches.py",
    )


def edited_files(root: Path, edits: Sequence[Edit]) -> Mapping[str, str]:
    """New text of every file that the edits change, by name; several edits of one file are chained."""
    texts: dict[str, str] = {}
    for edit in edits:
        path = root / edit.file
        if edit.file not in texts:
            try:
                texts[edit.file] = path.read_text(encoding="utf-8")
            except OSError as error:
                raise EditError(f"edit {edit.name}: cannot read {edit.file}: {error.strerror}") from error
        texts[edit.file] = edited_text(edit, texts[edit.file])
    return texts


def apply(root: Path, edits: Sequence[Edit]) -> None:
    """Change the copy under `root`: all of the edits, or, when one does not fit, none."""
    for name, text in edited_files(root, edits).items():
        (root / name).write_text(text, encoding="utf-8")


def without(edits: Sequence[Edit], names: frozenset[str]) -> tuple[Edit, ...]:
    """All edits but the named ones (to show what an edit is for); an unknown name is an error."""
    unknown = sorted(names - {edit.name for edit in edits})
    if unknown:
        known = ", ".join(edit.name for edit in edits)
        raise EditError(f"no such edit: {', '.join(unknown)}", hint=f"edits: {known}")
    return tuple(edit for edit in edits if edit.name not in names)
