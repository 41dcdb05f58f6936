"""Ranges, preconditions and encodings as tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flash_attn3_sm121.hub.server.conditional import (
    UnsatisfiableError,
    Verdict,
    accepts_gzip,
    judge,
    quality,
    select,
)

TAG = "abc"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, (0, 10, False)),
        ("bytes=0-0", (0, 1, True)),
        ("bytes=2-5", (2, 4, True)),
        ("bytes=2-", (2, 8, True)),
        ("bytes=-3", (7, 3, True)),
        ("bytes=-99", (0, 10, True)),
        ("bytes=9-99", (9, 1, True)),
        ("BYTES = 1-2", (1, 2, True)),
        ("bytes=5-2", (0, 10, False)),  # not a range at all
        ("bytes=0-1,3-4", (0, 10, False)),  # several: the whole
        ("bytes=-", (0, 10, False)),
        ("bytes=", (0, 10, False)),
        ("bytes=a-b", (0, 10, False)),
        ("items=0-1", (0, 10, False)),
        ("bytes=0-1-2", (0, 10, False)),
        ("bytes=" + "9" * 40 + "-", (0, 10, False)),  # longer than any file
    ],
)
def test_range(header: str | None, expected: tuple[int, int, bool]) -> None:
    span = select(10, TAG, range_header=header, if_range=None)
    assert (span.start, span.count, span.partial) == expected


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0", "bytes=999999999999999999-"])
def test_range_outside(header: str) -> None:
    with pytest.raises(UnsatisfiableError):
        select(10, TAG, range_header=header, if_range=None)


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=-1", "bytes=0-0"])
def test_range_of_nothing(header: str) -> None:
    with pytest.raises(UnsatisfiableError):
        select(0, TAG, range_header=header, if_range=None)


@pytest.mark.parametrize(
    ("if_range", "partial"),
    [
        ('"abc"', True),
        ('W/"abc"', False),
        ('"other"', False),
        ("Sat, 21 Nov 2026 07:00:00 GMT", False),
        ("nonsense", False),
    ],
)
def test_if_range(if_range: str, partial: bool) -> None:
    assert select(10, TAG, range_header="bytes=1-2", if_range=if_range).partial is partial


@given(size=st.integers(0, 50), header=st.text(st.sampled_from("bytes=0123456789-, x"), max_size=20))
def test_a_span_lies_within_the_file(size: int, header: str) -> None:
    try:
        span = select(size, TAG, range_header=header, if_range=None)
    except UnsatisfiableError:
        return
    assert span.start >= 0 and span.start + span.count <= size
    assert span.partial or (span.start, span.count) == (0, size)
    assert not span.partial or span.count > 0


@pytest.mark.parametrize(
    ("if_match", "if_none_match", "expected"),
    [
        (None, None, Verdict.PROCEED),
        (None, '"abc"', Verdict.NOT_MODIFIED),
        (None, 'W/"abc"', Verdict.NOT_MODIFIED),
        (None, '"x", "abc"', Verdict.NOT_MODIFIED),
        (None, "*", Verdict.NOT_MODIFIED),
        (None, '"x"', Verdict.PROCEED),
        (None, "abc", Verdict.PROCEED),
        ('"abc"', None, Verdict.PROCEED),
        ("*", None, Verdict.PROCEED),
        ('"x"', None, Verdict.PRECONDITION_FAILED),
        ('W/"abc"', None, Verdict.PRECONDITION_FAILED),
        ('"x"', '"abc"', Verdict.PRECONDITION_FAILED),
    ],
)
def test_preconditions(if_match: str | None, if_none_match: str | None, expected: Verdict) -> None:
    assert judge(TAG, if_match=if_match, if_none_match=if_none_match) is expected


@pytest.mark.parametrize(
    ("header", "yes"),
    [
        (None, False),
        ("", False),
        ("gzip", True),
        ("GZIP", True),
        ("br, gzip;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip; q=0.0, *", False),
        ("*", True),
        ("*;q=0", False),
        ("identity", False),
        ("gzip;q=nonsense", False),
        ("x-gzip", False),
    ],
)
def test_gzip(header: str | None, yes: bool) -> None:
    assert accepts_gzip(header) is yes


@pytest.mark.parametrize(("header", "expected"), [("a;q=0.3, b", 0.3), ("b;q=5", -1), ("a;q=7", 1.0), ("a;q=-1", 0.0)])
def test_quality(header: str, expected: float) -> None:
    assert quality(header, "a") == expected
