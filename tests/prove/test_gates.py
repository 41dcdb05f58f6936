"""What our gate calls native is what a library takes, and the reverse: over types, head dims, features and families.

The host code is the real one, as built for a profile; its kernels only say that they were called.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ci import ROOT
from ci.build.family import facts_of, identity
from ci.commands import common, options
from ci.plan.plan import FamilyPlan
from ci.prove.standin import library
from ci.prove.standin.calls import DEVICES

pytestmark = [pytest.mark.nvcc, pytest.mark.slow]
# A library's capability -> the device that it is shown.
DEVICE = {"8.0": "A100", "9.0": "H100", "12.1": "GB10"}
_ENTRY = re.compile(r"run_mha_(?P<direction>fwd|bwd)_<\d+, (?P<dtype>[\w:<>]+), (?P<dims>\d+(?:, \d+)?),[^>]+>(?=\()")
_HEAD = """#include <stdexcept>

#include "cutlass/numeric_types.h"
#include "fa3_kv8.h"
#include "fa3_qv_tile.h"
#include "flash.h"

[[noreturn]] static void reached(char const* kernel) { throw std::runtime_error(kernel); }
void prepare_varlen_num_blocks(Flash_fwd_params&, cudaStream_t, bool, int, int, bool) { reached("prepare"); }
"""


def host_only(family: FamilyPlan) -> FamilyPlan:
    """The same library, each entry point to its kernels a function that says it was called: type, head dims."""
    (api,) = [planned for planned in family.units if planned.unit.kind == "api"]
    text = _HEAD
    for planned in family.units:
        for entry in _ENTRY.finditer(planned.unit.text):
            kind = re.sub(r"::fa3::(Kv8|Qv)<cutlass::", lambda own: own[1].lower() + "_", entry["dtype"])
            kind = kind.rstrip(">").rpartition(":")[2]
            called = f"reached {kind} {entry['dims'].replace(',', '')}"
            text += f"template <> void {entry[0]}(Flash_{entry['direction']}_params&, cudaStream_t) "
            text += f'{{ reached("{called}"); }}\n'
    for kind in ("cutlass::bfloat16_t", "cutlass::half_t", "float"):
        for dim in (64, 128):
            entry = f"run_mha_fwd_combine_<{kind}, float, {dim}>"
            text += f'template <> void {entry}(Flash_fwd_params&, cudaStream_t, bool) {{ reached("combine"); }}\n'
    entries = replace(api.unit, name="entries", text=text, contents=("entry points",))
    return replace(family, units=(api, replace(api, unit=entries)))


def asked(archs: str, profile: str, folder: Path) -> dict[str, Any]:
    """The answers of both gates for a profile's library."""
    session = common.begin(options.Request(profile=profile, archs=archs, jobs=2))
    inputs = common.gather_inputs(session)
    (family,) = session.plan.families
    facts = facts_of(family, identity=identity(session.plan, inputs), sha256="0" * 64, platform_tag="any")
    made = library.make(common.builder(session, inputs), host_only(family), output=folder)
    properties = json.dumps(DEVICES[DEVICE[archs]].properties)
    argv = [sys.executable, "-m", "tests.fakes.gate_calls", str(made.library), facts.to_json(), properties]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("archs", "profile"),
    [
        ("12.1", "smoke"),
        ("12.1", "full"),
        ("8.0", "full"),
        ("9.0", "full"),
        ("9.0", "models.deepseek"),
    ],
)
def test_both_gates_agree(archs: str, profile: str, tmp_path: Path) -> None:
    found = asked(archs, profile, tmp_path)
    assert found["wrong"] == [], f"{len(found['wrong'])} calls: " + "\n".join(found["wrong"][:20])
    assert min(found["counts"].values()) > 100, found["counts"]
