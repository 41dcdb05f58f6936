"""The page's files, and the policies that say nothing else may run. No build step, nothing external."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PLAIN_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"
TYPES = {
    "hub.css": "text/css; charset=utf-8",
    "hub.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One file of the page."""

    text: str
    content_type: str


@cache
def read(name: str) -> str:
    """A file of `static/`; the name is one of ours."""
    return (files(__package__) / "static" / name).read_text(encoding="utf-8")


def asset(name: str) -> Asset | None:
    """What `/-/NAME` answers; None for any other name."""
    return Asset(text=read(name), content_type=TYPES[name]) if name in TYPES else None


@cache
def address(name: str) -> str:
    """An asset's address on the page; it changes with the content."""
    return f"-/{name}?v={hashlib.sha256(read(name).encode()).hexdigest()[:12]}"
