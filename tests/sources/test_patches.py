"""The edit engine: anchors are counted, errors name what they should, and nothing is half-applied."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from ci import ROOT
from ci.sources import patch as engine
from ci.sources import patches
from ci.sources.patch import Change, Edit
from flash_attn3_sm121.errors import EditError


def make(name: str = "one", file: str = "a.h", **change: object) -> Edit:
    return Edit(name=name, file=file, why="because", changes=(Change(**change),))  # type: ignore[arg-type]


def tried(edit: Edit, text: str) -> tuple[str, list[str]]:
    texts, misfits = engine.trial(lambda name: text, (edit,))
    return texts[edit.file], misfits


def test_an_edit_replaces_its_anchor() -> None:
    assert tried(make(anchor="left", replacement="right"), "a left b") == ("a right b", [])


def test_every_occurrence_is_replaced_when_so_many_are_expected() -> None:
    assert tried(make(anchor="x", replacement="y", count=3), "x x x") == ("y y y", [])


def test_an_edit_can_reach_to_an_end() -> None:
    text = "keep\n#define CHECK(x) \\\n  exit(1)\nkeep too exit(1)"
    assert tried(make(anchor="#define CHECK", until="exit(1)", replacement="!"), text) == (
        "keep\n!\nkeep too exit(1)",
        [],
    )


@pytest.mark.parametrize(
    ("text", "found"), [pytest.param("nothing", 0, id="missing"), pytest.param("left left", 2, id="ambiguous")]
)
def test_a_wrong_count_names_edit_file_and_counts(text: str, found: int) -> None:
    after, misfits = tried(make(anchor="left", replacement="right"), text)
    assert misfits == [f"edit one does not fit a.h: anchor 'left': expected 1 times, found {found}"]
    assert after == text


def test_a_missing_end_is_an_error() -> None:
    _, misfits = tried(make(anchor="start", until="stop", replacement=""), "start and on")
    assert misfits == ["edit one does not fit a.h: end 'stop' after 'start': expected 1 times, found 0"]


def test_edits_of_one_file_are_chained(tmp_path: Path) -> None:
    (tmp_path / "a.h").write_text("one")
    chosen = (make(anchor="one", replacement="two"), make(name="second", anchor="two", replacement="three"))
    engine.apply(tmp_path, chosen)
    assert (tmp_path / "a.h").read_text() == "three"


def test_nothing_is_written_when_one_edit_does_not_fit_and_all_misfits_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.h").write_text("one")
    (tmp_path / "b.h").write_text("other other")
    chosen = (
        make(anchor="one", replacement="two"),
        make(name="bad", file="b.h", anchor="other", replacement=""),
        make(name="gone", file="b.h", anchor="absent", replacement=""),
        make(name="lost", file="c.h", anchor="x", replacement=""),
    )
    with pytest.raises(EditError, match="3 changes do not fit these sources") as caught:
        engine.apply(tmp_path, chosen)
    assert "edit bad does not fit b.h: anchor 'other': expected 1 times, found 2" in str(caught.value)
    assert "edit gone does not fit b.h: anchor 'absent': expected 1 times, found 0" in str(caught.value)
    assert "edit lost: cannot read c.h" in str(caught.value)
    assert (tmp_path / "a.h").read_text() == "one"


def test_the_digest_follows_what_is_done_and_not_why() -> None:
    first, second = make(anchor="a", replacement="b"), make(anchor="a", replacement="c")
    reason = Edit(name=first.name, file=first.file, why="another reason", changes=first.changes)
    elsewhere = dataclasses.replace(first, since="bc0e4ac0", before="28ef22c9")
    assert engine.digest((first,)) == engine.digest((reason,)) == engine.digest((elsewhere,))
    assert len({engine.digest(chosen) for chosen in ((first,), (second,), (first, second), (second, first))}) == 4


def test_one_edit_can_be_withheld() -> None:
    left = engine.without(patches.EDITS, frozenset({"guard"}))
    assert len(left) == len(patches.EDITS) - 1
    assert "guard" not in {edit.name for edit in left}


def test_withholding_an_unknown_edit_is_an_error() -> None:
    with pytest.raises(EditError, match="no such edit: gaurd") as caught:
        engine.without(patches.EDITS, frozenset({"gaurd"}))
    assert "guard" in str(caught.value)


def test_names_are_unique_and_every_edit_says_why() -> None:
    names = [edit.name for edit in patches.EDITS]
    assert len(set(names)) == len(names)
    assert all(edit.why and edit.changes for edit in patches.EDITS)


def test_anchors_are_short() -> None:
    """They quote upstream: as little as tells the place."""
    assert max(len(change.anchor) for edit in patches.EDITS for change in edit.changes) <= 120


def test_what_edits_include_is_there() -> None:
    root = ROOT
    named = {
        name
        for edit in patches.EDITS
        for change in edit.changes
        for name in re.findall(r'#include "(fa3_\w+\.h)"', change.replacement)
    }
    assert named
    assert [name for name in sorted(named) if not (root / "csrc" / name).is_file()] == []
