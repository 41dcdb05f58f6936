"""`flash-attn3 bench` as it is typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flash_attn3_sm121.bench import command, first_use, workloads
from flash_attn3_sm121.bench.contenders import ours, sdpa
from flash_attn3_sm121.bench.result import Report
from flash_attn3_sm121.cli import main
from tests.bench.samples import TINY, dense, report
from tests.inductor import needs_inductor

WORKS = (dense(name="small"), dense(name="ragged", **{k: getattr(TINY["ragged"], k) for k in
         ("kind", "batch", "q_len", "k_len", "lengths", "heads")}))  # fmt: skip


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "QUICK", WORKS)
    monkeypatch.setattr(command, "QUICK_SECONDS", 0.01)


@pytest.mark.usefixtures("tiny")
def test_a_run_with_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / f"r.{name}" for name in ("json", "csv", "html", "markdown")}
    words = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    assert main(["bench", "--quick", "--device", "cpu", *words]) == 0
    out, err = capsys.readouterr()
    assert "small" in out and "WRONG" in out and "not measured" not in out
    assert "[ 1/2] small: a tiny one" in err and "dense-mask WRONG" in err
    made = Report.read(files["json"])
    assert made.command == "flash-attn3 bench --quick --device cpu"  # no path of this machine
    assert str(tmp_path) not in files["json"].read_text(encoding="utf-8")
    assert {entry.contender for entry in made.results[0].entries} >= {"sdpa", "torch-flash", "dense-mask"}
    flex = made.results[0].entry("flex")
    assert flex is not None and flex.status == "skipped"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("tiny")
def test_json_on_stdout_is_all_of_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--quick", "--device", "cpu", "--workload", "small", "--backend", "sdpa", "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [entry["contender"] for entry in data["results"][0]["entries"]] == ["sdpa", "dense-mask"]


@pytest.mark.usefixtures("tiny")
def test_a_wrong_answer_of_ours_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ours.Ours, "_call", staticmethod(lambda case, q, k, v: torch.zeros_like(q)))
    assert main(["bench", "--quick", "--device", "cpu", "--workload", "small", "--backend", "sdpa"]) == 24
    out, err = capsys.readouterr()
    assert "WRONG" in out and "a backend of ours gave no right answer" in err and "small / sdpa" in err


@pytest.mark.usefixtures("tiny")
def test_a_contender_that_blows_up_is_shown_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class PtxasError(Exception):
        pass

    def broken(self: object, case: object) -> None:
        raise PtxasError("ptxas fatal: no such chip")

    monkeypatch.setattr(sdpa.DenseMask, "prepare", broken)
    assert main(["bench", "--quick", "--device", "cpu", "--workload", "small", "--backend", "sdpa"]) == 0
    assert "PtxasError: ptxas fatal: no such chip" in capsys.readouterr().out


def test_the_steps_of_a_first_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One new process: the canary over the stand-in is a step of its own, and what is no step is not there."""
    monkeypatch.setattr(first_use, "RUNS", 1)
    saved = tmp_path / "first.json"
    assert main(["bench", "--first-use", "--device", "cpu", "--json", str(saved)]) == 0
    steps = json.loads(saved.read_text(encoding="utf-8"))["steps"]
    assert set(steps) - {"library"} == {"torch", "package", "facts", "fallback", "canary", "call", "again"}
    assert all(took > 0 for took in steps.values())
    assert "100.00%" in capsys.readouterr().out
    monkeypatch.setattr(first_use.sys, "executable", "/bin/false")
    assert main(["bench", "--first-use", "--device", "cpu"]) == 24


def test_list_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--quick", "--list", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "decode-ragged" in out and "nanochat-style" in out


@pytest.mark.parametrize(
    "words,said",
    [
        (["--workload", "nonsense*"], "nothing is called nonsense*"),
        (["--backend", "native"], "nothing is called native; on this device there are sdpa"),
        (["--device", "toaster"], "'toaster' is not a device"),
        (["--seconds", "-1"], "--seconds: expected more than 0, found -1"),
        (["--roofline", "toaster"], "no figures for 'toaster'"),
        (["--compare", "no-a.json", "no-b.json"], "cannot read no-a.json"),
    ],
    ids=["workload", "backend", "device", "seconds", "roofline", "compare"],
)
def test_mistakes_are_told(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    device = [] if "--device" in words else ["--device", "cpu"]
    assert main(["bench", "--quick", *device, *words]) == 2
    assert said in capsys.readouterr().err


def test_files_can_be_made_later_from_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "run.json"
    saved.write_text(report().to_json(), encoding="utf-8")
    assert main(["bench", "--from-json", str(saved), "--html", str(tmp_path / "r.html"), "--markdown", "-"]) == 0
    assert capsys.readouterr().out.startswith("**Imaginary <GPU>")
    assert (tmp_path / "r.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main(["bench", "--compare", str(saved), str(saved)]) == 0
    assert "1.00x" in capsys.readouterr().out


def test_a_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "run.json"
    saved.write_text(report().to_json(), encoding="utf-8")
    assert main(["bench", "--from-json", str(saved), "--csv", str(saved / "r.csv")]) == 2
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.slow
@needs_inductor
def test_flex_is_measured_when_asked_for(tmp_path: Path) -> None:
    saved = tmp_path / "flex.json"
    words = ["bench", "--quick", "--device", "cpu", "--workload", "train-window", "--backend", "flex", "--seconds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "flash_attn3_sm121", *words, "--json", str(saved)],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "compiling FlexAttention for cpu bfloat16" in done.stderr
    flex = Report.read(saved).results[0].entry("flex")
    assert flex is not None and flex.status == "ok" and flex.peak_bytes and flex.tflops
