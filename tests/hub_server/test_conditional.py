"""Ranges, preconditions and encodings as tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flash_attn3_sm121.hub.server.files import (
    UnsatisfiableError,
    accepts_gzip,
    named,
    select,
)

TAG = '"abc"'


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=2-5", (2, 6)),
        ("bytes=2-", (2, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("bytes=9-99", (9, 10)),
        ("bytes = 1-2", (1, 3)),
        ("bytes=5-2", None),  # not a range at all
        ("bytes=0-1,3-4", None),  # several: the whole
        ("bytes=-", None),
        ("bytes=", None),
        ("bytes=a-b", None),
        ("items=0-1", None),
        ("bytes=0-1-2", None),
        ("bytes=" + "9" * 40 + "-", None),  # longer than any file
    ],
)
def test_range(header: str | None, expected: tuple[int, int] | None) -> None:
    assert select(10, TAG, range_header=header, if_range=None) == expected


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
    assert (select(10, TAG, range_header="bytes=1-2", if_range=if_range) is not None) is partial


@given(size=st.integers(0, 50), header=st.text(st.sampled_from("bytes=0123456789-, x"), max_size=20))
def test_a_span_lies_within_the_file(size: int, header: str) -> None:
    try:
        span = select(size, TAG, range_header=header, if_range=None)
    except UnsatisfiableError:
        return
    assert span is None or 0 <= span[0] < span[1] <= size


@pytest.mark.parametrize(
    ("header", "weak", "yes"),
    [
        ('"abc"', False, True),
        ('W/"abc"', False, False),
        ('W/"abc"', True, True),
        ('"x", "abc"', True, True),
        ("*", False, True),
        ('"x"', True, False),
        ("abc", True, False),
    ],
)
def test_entity_tags(header: str, weak: bool, yes: bool) -> None:
    assert named(header, TAG, weak=weak) is yes


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
