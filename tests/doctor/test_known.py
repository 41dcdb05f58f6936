"""Every client of docs/clients.md is known to doctor, every test that its table names is there."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

from flash_attn3_sm121.doctor import clients, probes

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8").partition("| client |")
TABLE = (PAGE[1] + PAGE[2].partition("\n\n")[0]).splitlines()
# What doctor asks in processes of their own, and what is no distribution that one could look for.
PROBED = ("transformers", "torch", "kernels")
PROGRAMS = ("nanochat", "modded-nanogpt", "Wan, Wan2GP, kijai's nodes", "HunyuanVideo", "LightX2V", "XTuner", "ComfyUI")
ROWS = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in TABLE if line.startswith("| ")]


def test_the_page_and_doctor_know_the_same_clients() -> None:
    heading, *rows = ROWS
    assert heading == ["client", "version", "way in", "what is served", "what was run"]
    assert all(len(row) == 5 for row in rows)
    assert {row[0] for row in rows} == {*clients.KNOWN_CLIENTS, *PROBED, *PROGRAMS}


@pytest.mark.parametrize("row", ROWS[1:], ids=lambda row: row[0])
def test_what_was_run_is_a_test(row: list[str]) -> None:
    tests = re.findall(r"`(tests/[\w/]+\.py)`", row[4])
    assert tests and all((ROOT / name).is_file() for name in tests)


def test_an_installed_client_gets_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"diffusers": "0.42.1"}

    def version(name: str) -> str:
        if name in here:
            return here[name]
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(probes, "ask", lambda *_: {"available": True, "repos": [], "hub": None})
    found = {client.name: client for client in clients.look_at_clients(torch_works=True)}
    assert found["diffusers 0.42.1"].ours and not any(name.startswith("yunchang") for name in found)
