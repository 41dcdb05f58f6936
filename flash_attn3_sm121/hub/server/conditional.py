"""Conditional and range requests (RFC 9110), as pure functions from header texts to a decision."""

from __future__ import annotations

import re

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})-(\d{0,18})\s*")
_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')


class UnsatisfiableError(ValueError):
    """The range lies outside the representation: 416."""


def named(header: str, etag: str, *, weak: bool) -> bool:
    """Whether a list of entity tags holds `etag`; only weak comparison accepts tags marked as weak."""
    if header.strip() == "*":
        return True
    return any(f'"{value}"' == etag for mark, value in _TAG.findall(header) if weak or not mark)


def select(size: int, etag: str, *, range_header: str | None, if_range: str | None) -> tuple[int, int] | None:
    """First byte and the one behind the last that a GET asks for; None means the whole.

    Several ranges at once, or a header that we cannot read, mean the whole (the standard allows both). A date in
    If-Range never matches: the times of files here are made from their content.
    """
    match = _RANGE.fullmatch(range_header) if range_header is not None else None
    if match is None or not (match[1] or match[2]):
        return None
    if if_range is not None and not named(if_range, etag, weak=False):
        return None
    if not match[1]:
        count = min(int(match[2]), size)
        if count == 0:
            raise UnsatisfiableError(range_header)
        return size - count, size
    start, last = int(match[1]), int(match[2]) if match[2] else size - 1
    if match[2] and last < start:
        return None  # not a valid range at all, so it is ignored
    if start >= size:
        raise UnsatisfiableError(range_header)
    return start, min(last, size - 1) + 1


def accepts_gzip(header: str | None) -> bool:
    """Whether Accept-Encoding allows gzip: by its name, else by `*`."""
    qualities: dict[str, float] = {}
    for item in (header or "").lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        match = re.fullmatch(r"q\s*=\s*([01](?:\.\d{0,3})?)", parameters[0]) if parameters else None
        qualities[name] = float(match[1]) if match else 0.0 if parameters else 1.0
    return qualities.get("gzip", qualities.get("*", 0.0)) > 0
