"""CONTRIBUTING.md's recipes, followed in a copy of the clone: a row in one place is enough, a bad one is refused."""

from __future__ import annotations

import pytest

from tests.clients.envs import CLIENTS
from tests.docs.pages import ROOT
from tests.docs.place import Place

ROW = (
    '        _row("12.2", Family.{family}, target="sm_122", min_cuda=(12, 9), smem_limit=101376, devices="made up"),\n'
)


def add_row(place: Place, family: str) -> None:
    table = place.clone / "flash_attn3_sm121" / "arch.py"
    text = table.read_text(encoding="utf-8")
    anchor = "    for row in (\n"
    assert text.count(anchor) == 1
    table.write_text(text.replace(anchor, anchor + ROW.format(family=family)), encoding="utf-8")


@pytest.mark.slow
def test_an_architecture_is_added_in_one_place(place: Place) -> None:
    add_row(place, "SM8X")
    code, said = place.type(
        "python -m flash_attn3_sm121.dispatch.support --write README.md && grep '^| 12.2 ' README.md"
    )
    assert code == 0 and "made up" in said and "`sm_122`" in said
    code, said = place.type("python -m ci plan --archs '12.1 12.2'")
    assert code == 0 and "-DFA3_IMAGES=sm_121,sm_122" in said, said
    code, said = place.type("python -m ci matrix --profile full --archs 12.2")
    assert code == 0 and "sm8x-" in said, said


@pytest.mark.slow
def test_too_little_shared_memory_wants_another_family(place: Place) -> None:
    add_row(place, "SM80")
    code, said = place.type("python -m ci plan")
    assert code != 0 and "smem_limit: expected at least" in said


def test_what_adding_a_client_names_is_there() -> None:
    """The page points at `CLIENTS`, the probes, their judge, doctor's list and the page of snippets."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Add a client")[2]
    for name in ("tests/clients/envs.py", "tests/docs/test_snippets.py", "flash_attn3_sm121/doctor/clients.py"):
        assert f"`{name}`" in text and (ROOT / name).is_file()
    assert "`CLIENTS`" in text and CLIENTS
    assert "`test_real_packages.py`" in text and (ROOT / "tests" / "clients" / "test_real_packages.py").is_file()
