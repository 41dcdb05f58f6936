"""What `python -m ci prove` showed of a library's objects, kept for the wheel that is made of the same objects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ci.cache.folders import locked, making
from flash_attn3_sm121.native.buildfacts import EXECUTED_FILE, executed_line


def _entry(keys: Iterable[str]) -> str:
    return f"executed/{hashlib.sha256(json.dumps(sorted(keys)).encode()).hexdigest()}"


def put(cache: Path, keys: Iterable[str], document: Mapping[str, Any]) -> None:
    """Keep a document under the keys of a library's objects; a newer one replaces it."""
    entry = _entry(keys)
    with locked(cache, entry), making(cache, entry) as folder:
        (folder / EXECUTED_FILE).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def find(cache: Path, keys: Iterable[str]) -> str | None:
    """The document's text, if these objects were executed."""
    path = cache / _entry(keys) / EXECUTED_FILE
    return path.read_text(encoding="utf-8") if path.is_file() else None


def line(document: Mapping[str, Any] | None) -> str:
    """One line for people about what was executed."""
    if document is None:
        return "12.1's kernels were not executed in software before this wheel was made (make prove, then make wheel)"
    return executed_line(document)
