"""Conditional and range requests (RFC 9110), as pure functions from header texts to a decision."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

_RANGE = re.compile(r"(\d{0,18})-(\d{0,18})")
_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')


class Verdict(Enum):
    """What a request's preconditions say."""

    PROCEED = "proceed"
    NOT_MODIFIED = "not modified"
    PRECONDITION_FAILED = "precondition failed"


@dataclass(frozen=True, kw_only=True)
class Span:
    """Bytes to send: `start` and `count` of a whole of `size`; `partial` says 206."""

    start: int
    count: int
    size: int
    partial: bool

    @property
    def content_range(self) -> str:
        return f"bytes {self.start}-{self.start + self.count - 1}/{self.size}"


class UnsatisfiableError(ValueError):
    """The range lies outside the representation: 416."""


def strong_tag(value: str) -> str:
    return f'"{value}"'


def _tags(header: str) -> list[tuple[bool, str]]:
    return [(match[1] is not None, match[2]) for match in _TAG.finditer(header)]


def judge(etag: str, *, if_match: str | None, if_none_match: str | None) -> Verdict:
    """The preconditions in the standard's order; If-Match compares strongly, If-None-Match weakly."""
    if if_match is not None and if_match.strip() != "*" and (False, etag) not in _tags(if_match):
        return Verdict.PRECONDITION_FAILED
    if if_none_match is not None and (
        if_none_match.strip() == "*" or any(value == etag for _, value in _tags(if_none_match))
    ):
        return Verdict.NOT_MODIFIED
    return Verdict.PROCEED


def select(size: int, etag: str, *, range_header: str | None, if_range: str | None) -> Span:
    """The bytes a GET asks for. Several ranges at once, or a header we cannot read, mean the whole (the standard allows
    both). A date in If-Range never matches: content is named by hash here and has no dates."""
    whole = Span(start=0, count=size, size=size, partial=False)
    if range_header is None or (if_range is not None and (False, etag) not in _tags(if_range)):
        return whole
    unit, _, spec = range_header.partition("=")
    match = _RANGE.fullmatch(spec.strip())
    if unit.strip().lower() != "bytes" or match is None or match[0] == "-":
        return whole
    first, last = match[1], match[2]
    if not first:
        count = min(int(last), size)
        if count == 0:
            raise UnsatisfiableError(range_header)
        return Span(start=size - count, count=count, size=size, partial=True)
    start, stop = int(first), min(int(last), size - 1) if last else size - 1
    if last and int(last) < start:
        return whole  # not a valid range at all, so it is ignored
    if start >= size:
        raise UnsatisfiableError(range_header)
    return Span(start=start, count=stop - start + 1, size=size, partial=True)


def quality(header: str, wanted: str) -> float:
    """The q-value that an Accept or Accept-Encoding header gives to exactly `wanted`; -1 where it is not named."""
    for item in header.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        if name != wanted:
            continue
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                try:
                    return min(max(float(value), 0.0), 1.0)
                except ValueError:
                    return 0.0
        return 1.0
    return -1.0


def accepts_gzip(header: str | None) -> bool:
    if header is None:
        return False
    named = quality(header, "gzip")
    return named > 0 if named >= 0 else quality(header, "*") > 0
