"""The order of upstream's commits, as far as edits and pins ask for it: which edits each state of the sources needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ci.sources import patch
from ci.sources.patch import Edit
from flash_attn3_sm121.errors import TableError

# Oldest first, on the main branch: the pins' commits, and all that the edits' `since` and `before` name.
HISTORY = (
    "3effce828cd3c69cdeff96b418a6370d5d5a2430",  # the default pin
    "bc0e4ac01484ffb61ddc694724826bec4d9cf1c2",  # semaphores of the deterministic backward live long enough
    "e2743ab5b3803bb672b16437ba98a3b1d4576c50",  # the pin 3.0.0
    "484a5dc1b1058bcbe03b3aeb81334c49cfcf6ba3",  # CHECK_CUTLASS around launches
    "28ef22c99a135b234fb54bc33cfb638078bacb65",  # the partial LSE's own strides
    "0251105a2fb19d2957484b7f023cd8c115286ced",  # the pin head
)


def position(commit: str) -> int | None:
    """A commit's place in HISTORY; its first digits are enough. None where it is not there."""
    return next((place for place, known in enumerate(HISTORY) if known.startswith(commit)), None)


def edits_at(place: int, edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """The edits that sources at a place of HISTORY need."""
    return tuple(edit for edit in edits if _place(edit, edit.since, 0) <= place < _place(edit, edit.before, place + 1))


def _place(edit: Edit, commit: str, default: int) -> int:
    place = position(commit) if commit else default
    if place is None:
        raise TableError(f"edit {edit.name}: {commit} is not in the history of ci/sources/history.py")
    return place


def edits_for(
    commit: str | None, edits: Sequence[Edit], read: Callable[[str], str]
) -> tuple[tuple[Edit, ...], list[str]]:
    """The edits that sources need, and where these do not fit.

    Args:
        commit: the sources' commit. One that HISTORY has decides. For another one, or none, the place in HISTORY is
            taken whose edits all fit, and of several the one with the most edits: what upstream took no longer fits.
        edits: the whole table.
        read: gives the text of a file of the sources.

    Returns:
        The edits, and a line for each misfit. Where no place's edits all fit, those with the fewest misfits.
    """
    place = position(commit) if commit else None
    places = range(len(HISTORY)) if place is None else (place,)
    choices = [edits_at(place, edits) for place in places]
    trials = [(chosen, patch.trial(read, chosen)[1]) for chosen in choices]
    return min(trials, key=lambda trial: (len(trial[1]), -len(trial[0])))
