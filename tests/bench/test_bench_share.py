"""What owners send: one file, whose form is written down in docs/results/bench.schema.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from flash_attn3_sm121.bench import result
from flash_attn3_sm121.bench.command import shared_name
from flash_attn3_sm121.bench.workloads import Workload
from tests.bench.samples import report

RESULTS = Path(__file__).parents[2] / "docs" / "results"
STRICT = ConfigDict(extra="forbid")


@dataclass(config=STRICT, frozen=True, kw_only=True)
class File(result.Report):
    """A report as it stands in a file."""

    schema: int
    tool: str


FORM = TypeAdapter(File)


def schema() -> str:
    form = FORM.json_schema()
    form["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    form["title"] = "What `flash-attn3 bench --share` writes"
    return json.dumps(form, indent=1, sort_keys=True) + "\n"


def test_the_schema_is_that_of_the_code(request: pytest.FixtureRequest) -> None:
    path = RESULTS / "bench.schema.json"
    if request.config.getoption("--update-goldens"):
        path.write_text(schema(), encoding="utf-8")
    assert path.read_text(encoding="utf-8") == schema(), "pytest --update-goldens tests/bench/test_bench_share.py"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_the_results_that_are_kept_have_that_form(path: Path) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    if data.get("tool") != "flash-attn3 bench":
        pytest.skip("a document of another tool")
    found = FORM.validate_python(data)
    assert found.results and Workload(**data["results"][0]["workload"]).name


def test_a_shared_file_is_named_and_has_the_form_and_no_other() -> None:
    made = report(device="NVIDIA GB10")
    assert shared_name(made).startswith("bench-nvidia-gb10-20") and shared_name(made).endswith(".json")
    data = json.loads(made.to_json())
    FORM.validate_python(data)
    for spoiled in ({"extra": 1}, {"results": [{}]}, {"ceiling_gbps": "fast"}):
        with pytest.raises(ValidationError):
            FORM.validate_python(data | spoiled)
