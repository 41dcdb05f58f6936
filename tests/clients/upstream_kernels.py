"""FlashAttention-3's own tests of fp8 and of a second query, through the full profile's kernels, executed on the CPU.

`python -m tests.clients.upstream_kernels fp8 40 7`: forty random cases (or of `qv`), drawn with seed 7; those that
failed, or took the fallback, on stdout. It compiles what the cache lacks of the full profile.
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
        arguments = {"folder": name, "kind": kind, "count": count, "seed": seed}
        read = [path for path in library.ptx if path.name.startswith((f"fwd_{kind}_", "combine", "prepare"))]
        python = str(python_of("upstream"))
        run = library.run("tests.clients.probe_upstream_kernels:sample", arguments, ptx=read, python=python)
    right = [found for found in run.result if not found["wrong"] and found["plans"] == ["NativePlan"]]
    others = [found for found in run.result if found not in right]
    print(json.dumps({"passed": len(right), "others": others, "findings": run.errors}, indent=1))
    return 1 if others or run.errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:4])))
