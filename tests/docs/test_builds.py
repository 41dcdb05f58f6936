"""The commands of the documents that compile do what the pages say; they share this machine's content cache."""

from __future__ import annotations

import pytest

from tests.docs.kinds import Run
from tests.docs.place import Place
from tests.docs.table import choose

pytestmark = [pytest.mark.nvcc, pytest.mark.slow]


@pytest.mark.parametrize(("command", "how"), choose(Run, compiles=True))
def test_it_does_what_the_page_says(command: str, how: Run, place: Place) -> None:
    place.follow(command, how)
