"""FlashAttention-3's own tests of fp8 and of a second query, through the full profile's kernels, executed on the CPU.

`python -m tests.clients.upstream_kernels fp8 40 7`: forty cases (or of `qv`), drawn with the seeds from 7 on;
those that failed, or took the fallback, on stdout. It compiles what the cache lacks of the full profile.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from ci.commands import common, options
from ci.prove.gb10 import executable
from ci.settings import Settings
from ci.sources.fetch import fetch
from ci.sources.lock import read_lock
from tests.clients.envs import python_of


def lay(folder: Path) -> None:
    """Put upstream's tests there, with the device that the executed kernels work on."""
    tree = fetch(read_lock(), Settings())
    for file in ("test_flash_attn.py", "test_util.py", "padding.py"):
        text = (tree.hopper / file).read_text(encoding="utf-8")
        (folder / file).write_text(text.replace('device = "cuda"', 'device = "cpu"'), encoding="utf-8")


def main(kind: str, count: int, seed: int) -> int:
    session = common.begin(options.Request(profile="full", archs="12.1"))
    (family,) = session.plan.families
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lay(folder)
        library = executable.make(common.builder(session, common.gather_inputs(session)), family, output=folder)
        read = [path for path in library.ptx if path.name.startswith((f"fwd_{kind}_", "combine", "prepare"))]
        python, function = str(python_of("upstream")), "tests.clients.probe_upstream_kernels:sample"
        shown = []
        for number in range(seed, seed + count):  # a process each: memory of a case is remembered after it was freed
            run = library.run(function, {"folder": name, "kind": kind, "seed": number}, ptx=read, python=python)
            right = not run.result["wrong"] and run.result["plans"] == ["NativePlan"] and not run.errors
            shown.append({**run.result, "right": right, "findings": run.errors})
            print(number, "right" if right else "wrong", run.result["case"], file=sys.stderr, flush=True)
    others = [found for found in shown if not found["right"]]
    print(json.dumps({"passed": count - len(others), "others": others}, indent=1))
    return 1 if others else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:4])))
