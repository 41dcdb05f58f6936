"""A tiny gpt-oss of the real transformers, trained for a step by kernels that are executed on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from ci.prove.gb10.executable import Executable
from ci.verify import kernels
from tests.clients.envs import python_of
from tests.clients.probe_gpt_oss import LAYERS
from tests.fakes.fault_kernels import make

pytestmark = [pytest.mark.nvcc, pytest.mark.network, pytest.mark.slow]
HUB = "kernels-community/vllm-flash-attn3"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Executable:
    return make(tmp_path_factory.mktemp("gpt-oss"), mended=True)


@pytest.mark.parametrize(
    ("client", "ways"),
    [("gpt-oss", {"flash_attention_3": HUB, HUB: HUB}), ("transformers-4.57", {"flash_attention_3": None})],
    ids=["transformers-5.17", "transformers-4.57"],
)
def test_gpt_oss_is_what_eager_makes_of_it(
    library: Executable, tmp_path: Path, client: str, ways: dict[str, str | None]
) -> None:
    """transformers 5 turns flash_attention_3 into the hub's kernel by itself, 4.57 has our package do it."""
    arguments = {"implementations": list(ways), "home": str(tmp_path)}
    run = library.run("tests.clients.probe_gpt_oss:show", arguments, python=str(python_of(client)))
    report = run.result
    assert list(run.errors) == []
    assert set(report["plans"]) == {"NativePlan"}
    kinds = [kernels.kind(launch["kernel"]) for launch in run.launches]
    before, canary = 0, 1
    for name, settled in ways.items():
        assert report[name]["settled"] == (settled or name)
        own = kinds[before : report[name]["launches"]]
        assert [own.count(kind) for kind in ("forward", "backward")] == [len(LAYERS) + canary] * 2
        before, canary = report[name]["launches"], 0
        for kind, distance in report[name]["distances"].items():
            assert distance < 1.2 * report["eager"][kind], (name, kind)
            assert report["ignored"][kind] > 10 * distance, "sinks weigh in this model"
