"""One table of edits for all pins: which are needed where, by commit, and by fit where no commit is known."""

from __future__ import annotations

import dataclasses

import pytest

from ci.sources import history, patches
from ci.sources.patch import Change, Edit
from flash_attn3_sm121.errors import TableError


def names(commit: str) -> set[str]:
    place = history.position(commit)
    assert place is not None
    return {edit.name for edit in history.edits_at(place, patches.EDITS)}


def test_what_upstream_took_is_not_done_again() -> None:
    everywhere = {edit.name for edit in patches.EDITS if not (edit.since or edit.before)}
    assert names("3effce8") - everywhere == {"lse-strides", "semaphore-lifetime"}
    assert names("e2743ab5") - everywhere == {"lse-strides"}
    assert names("0251105a") - everywhere == {"check-cutlass", "cluster-backward"}
    assert everywhere < names("3effce8")


def test_every_commit_that_an_edit_names_has_its_place() -> None:
    for edit in patches.EDITS:
        assert all(history.position(commit) is not None for commit in (edit.since, edit.before) if commit)
    unknown = dataclasses.replace(patches.EDITS[0], since="1" * 8)
    with pytest.raises(TableError, match="edit guard: 11111111 is not in the history"):
        history.edits_at(0, (unknown,))


ANY = Edit(name="any", file="a.h", why="x", changes=(Change(anchor="any", replacement="done"),))
OLD = Edit(name="old", file="a.h", why="x", changes=(Change(anchor="old", replacement="new"),), before="28ef22c9")
MACRO = Edit(name="macro", file="a.h", why="x", changes=(Change(anchor="macro", replacement="-"),), since="484a5dc1")


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        pytest.param("any old", (ANY, OLD), id="as the oldest"),
        pytest.param("any old macro", (ANY, OLD, MACRO), id="between two commits"),
        pytest.param("any new macro", (ANY, MACRO), id="as the newest"),
    ],
)
def test_without_a_known_commit_the_edits_that_fit_tell_the_place(text: str, needed: tuple[Edit, ...]) -> None:
    for commit in (None, "9" * 40):
        assert history.edits_for(commit, (ANY, OLD, MACRO), lambda name: text) == (needed, [])


def test_a_known_commit_decides_whatever_the_sources_hold() -> None:
    chosen, misfits = history.edits_for(history.HISTORY[0], (ANY, OLD, MACRO), lambda name: "any new macro")
    assert chosen == (ANY, OLD)
    assert misfits == ["edit old does not fit a.h: anchor 'old': expected 1 times, found 0"]


def test_sources_that_fit_nowhere_name_every_misfit_at_the_nearest_place() -> None:
    chosen, misfits = history.edits_for(None, (ANY, OLD, MACRO), lambda name: "any any macro")
    assert chosen == (ANY, MACRO)
    assert misfits == ["edit any does not fit a.h: anchor 'any': expected 1 times, found 2"]
