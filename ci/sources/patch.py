"""Edits: small, anchored, checked changes to a build copy of upstream's sources. The pristine tree is never touched.

An anchor is a short piece of the file that must occur exactly as often as the edit says. Where upstream has changed,
the edits that no longer fit are named, all of them, before anything is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
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
    """Changes to one file that belong together, with the reason for them, and the sources that need them."""

    name: str
    file: str  # relative to the tree that holds hopper/ and cutlass/
    why: str
    changes: tuple[Change, ...]
    since: str = ""  # the upstream commit that made it necessary (ci/sources/history.py); empty: the oldest one
    before: str = ""  # the upstream commit from which on it is not needed; empty: none is


_NOT_DONE = frozenset({"why", "since", "before"})


def digest(edits: Sequence[Edit]) -> str:
    """A hash of everything that the edits do; reasons, and which sources need them, are not part of it."""
    content = [{key: value for key, value in asdict(edit).items() if key not in _NOT_DONE} for edit in edits]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def trial(read: Callable[[str], str], edits: Sequence[Edit]) -> tuple[dict[str, str], list[str]]:
    """Apply edits in memory; several edits of one file are chained.

    Args:
        read: gives the text of a file, and raises OSError where there is none.
        edits: applied in this order. A change that does not fit is left out.

    Returns:
        The new text of every changed file by name, and a line for each misfit: edit, file, anchor, expected, found.
    """
    texts: dict[str, str] = {}
    misfits: list[str] = []
    for edit in edits:
        try:
            text = texts[edit.file] if edit.file in texts else read(edit.file)
        except OSError as error:
            misfits.append(f"edit {edit.name}: cannot read {edit.file}: {error.strerror}")
            continue
        for change in edit.changes:
            misfit = _misfit(change, text)
            if misfit:
                misfits.append(f"edit {edit.name} does not fit {edit.file}: {misfit}")
            else:
                text = _replaced(change, text)
        texts[edit.file] = text
    return texts, misfits


def _misfit(change: Change, text: str) -> str:
    """How a change does not fit; empty where it does."""
    _, *parts = text.split(change.anchor)
    if len(parts) != change.count:
        return f"anchor {change.anchor!r}: expected {change.count} times, found {len(parts)}"
    if any(change.until not in part for part in parts):
        return f"end {change.until!r} after {change.anchor!r}: expected 1 times, found 0"
    return ""


def _replaced(change: Change, text: str) -> str:
    if not change.until:
        return text.replace(change.anchor, change.replacement)
    head, *parts = text.split(change.anchor)
    return head + "".join(change.replacement + part.partition(change.until)[2] for part in parts)


def refuse_misfits(misfits: Sequence[str], sources: str) -> None:
    """Raise EditError that lists all misfits, if there are any."""
    if misfits:
        raise EditError(
            f"{len(misfits)} changes do not fit {sources}:" + "".join(f"\n  {line}" for line in misfits),
            hint="they are not the sources that the edits were written for: CONTRIBUTING.md, Raise a pin",
        )


def apply(root: Path, edits: Sequence[Edit]) -> None:
    """Change the copy under `root`: all of the edits, or, when one does not fit, none.

    Raises:
        EditError: naming everything that does not fit.
    """
    texts, misfits = trial(lambda name: (root / name).read_text(encoding="utf-8"), edits)
    refuse_misfits(misfits, "these sources")
    for name, text in texts.items():
        (root / name).write_text(text, encoding="utf-8")


def without(edits: Sequence[Edit], names: frozenset[str]) -> tuple[Edit, ...]:
    """All edits but the named ones (to show what an edit is for); an unknown name is an error."""
    unknown = sorted(names - {edit.name for edit in edits})
    if unknown:
        known = ", ".join(edit.name for edit in edits)
        raise EditError(f"no such edit: {', '.join(unknown)}", hint=f"edits: {known}")
    return tuple(edit for edit in edits if edit.name not in names)
