"""The cutting of masks, against the definition entry by entry, for shapes that hypothesis makes up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flash_attn3_sm121.fallback import geometry, masks
from flash_attn3_sm121.fallback.geometry import Band, Geometry, Kind, Piece, plan
from tests.fallback.reference import sees

side = st.integers(-1, 40)


@st.composite
def problems(draw: st.DrawFn) -> Geometry:
    rows, keys = draw(st.integers(0, 40)), draw(st.integers(0, 40))
    band = Band(left=draw(side), right=draw(side), chunk=draw(st.integers(0, 20)))
    return Geometry.bottom_right(rows=rows, keys=keys, band=band)


def matrix(problem: Geometry) -> list[list[bool]]:
    band = problem.band
    return [
        [
            sees(i, j, problem.rows, problem.keys, left=band.left, right=band.right, chunk=band.chunk)
            for j in range(problem.keys)
        ]
        for i in range(problem.rows)
    ]


def entries(problem: Geometry, piece: Piece) -> list[tuple[int, int]]:
    """The visible (row, key) pairs of a piece, by its kind."""
    found = []
    for n in range(piece.repeat):
        row, key = piece.row + n * piece.rows, piece.key + n * piece.rows
        # The mask of a repeated piece is made once, for its first block.
        mask = masks.block(problem, piece.row, piece.rows, piece.key, piece.keys, device=torch.device("cpu")).tolist()
        for r in range(piece.rows):
            for c in range(piece.keys):
                causal = piece.kind is Kind.CAUSAL and c <= r
                mirrored = piece.kind is Kind.MIRRORED and c >= r
                if piece.kind is Kind.FULL or causal or mirrored or (piece.kind is Kind.BAND and mask[r][c]):
                    found.append((row + r, key + c))
    return found


@given(problems())
def test_ranges_are_what_the_definition_says(problem: Geometry) -> None:
    for i, row in enumerate(matrix(problem)):
        seen = [j for j, visible in enumerate(row) if visible]
        assert (i < problem.dead) == (not seen)
        if seen:
            assert (problem.low(i), problem.high(i)) == (seen[0], seen[-1] + 1)
            assert len(seen) == problem.high(i) - problem.low(i)


@given(problems())
def test_narrowing_changes_nothing(problem: Geometry) -> None:
    low, high, inner = problem.narrowed()
    assert 0 <= low <= high <= problem.keys
    assert inner.dead == problem.dead
    for i in range(problem.dead, problem.rows):
        assert (inner.low(i) + low, inner.high(i) + low) == (problem.low(i), problem.high(i))


@pytest.mark.parametrize("small", [0, 64, 1 << 16])
@settings(max_examples=150)
@given(
    problem=problems(),
    backward=st.booleans(),
    block=st.sampled_from((1, 3, 4, 8, 64)),
    repeat=st.sampled_from((1, 3, 16)),
)
def test_a_plan_covers_every_visible_entry_once(
    small: int, problem: Geometry, backward: bool, block: int, repeat: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "BLOCK_ROWS": block,
            "SQUARE_WINDOW": 1,
            "REPEAT_ROWS": block * repeat,
            "SMALL_MASK": small,
            "SPLIT_ROWS": 4,
        }.items():
            patch.setattr(geometry, name, value)
        groups = plan(problem, backward=backward)
        covered = [entry for group in groups for piece in group for entry in entries(problem, piece)]
    want = [(i, j) for i, row in enumerate(matrix(problem)) for j, visible in enumerate(row) if visible]
    assert sorted(covered) == want
    rows = [row for group in groups for row in range(group[0].row, group[0].row_end)]
    assert rows == list(range(problem.dead, problem.rows)), "groups cover the live rows, in order"
    assert all(piece.row == group[0].row and piece.row_end == group[0].row_end for group in groups for piece in group)


def kinds(rows: int, keys: int, *, backward: bool = False, **band: int) -> list[list[str]]:
    problem = Geometry.bottom_right(rows=rows, keys=keys, band=Band(**band))
    return [[f"{piece.kind.value} x{piece.repeat}" for piece in group] for group in plan(problem, backward=backward)]


def test_plans_of_the_usual_shapes() -> None:
    assert kinds(4096, 4096) == [["full x1"]]
    assert kinds(4096, 4096, right=0) == [["causal x1"]]
    assert kinds(4096, 1024, right=0) == [["causal x1"]], "rows without keys are left out"
    assert kinds(1, 8192, right=0, left=1023) == [["full x1"]], "a decoding step needs no mask"
    assert kinds(512, 8192, right=0) == [["full x1", "causal x1"]], "a chunk of a prompt behind what is cached"
    window = kinds(16384, 16384, right=0, left=1023)
    assert sum(len(group) for group in window) <= 20, "the inside of a window is a few repeated pieces"
    assert window[1] == ["band x4"]
    squares = kinds(4100, 4100, backward=True, right=0, left=1024)
    assert squares == [["causal x1"], ["causal x3", "mirrored x3"], ["causal x1", "band x1"]]


def test_a_window_costs_what_it_shows() -> None:
    for length in (8192, 65536):
        problem = Geometry.bottom_right(rows=length, keys=length, band=Band(left=1023, right=0))
        scores = sum(piece.rows * piece.keys * piece.repeat for group in plan(problem) for piece in group)
        assert scores <= 1.3 * 1024 * length


@given(problems())
def test_rows_that_see_one_key_alone(problem: Geometry) -> None:
    seen = [{j for j, visible in enumerate(row) if visible} for row in matrix(problem)]
    single = [i for i, keys in enumerate(seen) if len(keys) == 1]
    shared = set().union(*(keys for keys in seen if len(keys) > 1))
    rows, keys = problem.alone()
    assert rows == single
    assert keys == sorted(set().union(*(seen[i] for i in single)) - shared)
