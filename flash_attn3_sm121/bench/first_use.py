"""What a process pays once, step by step: torch, this package, a kernel library, the canary, the first call.

Each run is a process of its own, and the least of several counts: whatever interrupts a step only adds to it. On a CPU
the call takes the native way over a stand-in for a library, whose forward is the fallback's; the libraries of the
installed wheel are loaded there as well.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import subprocess
import sys
import time
from typing import Any

from flash_attn3_sm121.console import Block, Table, format_seconds
from flash_attn3_sm121.errors import BenchError

RUNS = 5
STEPS = {
    "torch": "import torch",
    "context": "torch's CUDA context",
    "package": "import flash_attn3_sm121's functions, which registers its ops",
    "facts": "find the kernel libraries, read their facts",
    "library": "load the library",
    "fallback": "import the fallback, which the canary compares with",
    "canary": "the canary, once a device, type and direction",
    "call": "the first call beyond that: validated, decided, planned, run",
    "again": "the second call",
}
Steps = dict[str, float]


def measure_here(device_name: str) -> Steps:
    """Take the steps in this process, which must not have imported torch. Those that the device lacks are left out."""
    steps: Steps = {}
    last = time.perf_counter()

    def done(name: str) -> None:
        nonlocal last
        steps[name] = time.perf_counter() - last
        last = time.perf_counter()

    import torch

    done("torch")
    device = torch.device(device_name)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.zeros(1, device=device)
        torch.cuda.synchronize(device)
        done("context")
    from flash_attn3_sm121 import flash_attn_func

    done("package")
    from flash_attn3_sm121.native import library as native

    libraries = native.installed()
    done("facts")
    for library in libraries:
        if not on_gpu or library.facts.code_for(*torch.cuda.get_device_capability(device)):
            library.ops()
    if libraries:
        done("library")
    importlib.import_module("flash_attn3_sm121.fallback")
    done("fallback")
    from flash_attn3_sm121.bench.overhead import native_on_cpu
    from flash_attn3_sm121.dispatch import canary

    run_canary = canary.run_forward

    def timed(*args: Any, **options: Any) -> str | None:
        began = time.perf_counter()
        text = run_canary(*args, **options)
        steps["canary"] = time.perf_counter() - began
        return text

    vars(canary)["run_forward"] = timed
    q, k, v = (torch.randn(1, 128, 4, 128, device=device).bfloat16() for _ in range(3))
    with contextlib.nullcontext() if on_gpu else native_on_cpu(_by_fallback):
        done("preparation")
        for name in ("call", "again"):
            flash_attn_func(q, k, v, causal=True)
            if on_gpu:
                torch.cuda.synchronize(device)
            done(name)
    steps["call"] -= steps.get("canary", 0.0)
    return {name: steps[name] for name in STEPS if name in steps}


def _by_fallback(*values: Any) -> Any:
    """A library's forward op, computed by the fallback."""
    from flash_attn3_sm121 import fallback
    from flash_attn3_sm121.call import schemas
    from flash_attn3_sm121.call.arguments import ForwardArgs
    from flash_attn3_sm121.dispatch import python_backend

    args = ForwardArgs(**dict(zip(schemas.NATIVE_FWD_FIELDS, values, strict=False)))
    return python_backend.forward(fallback, args)


def first_use(device: str) -> Steps:
    """The least seconds of each step over `RUNS` new processes.

    Raises:
        BenchError: such a process failed; the message has the last line of what it said.
    """
    runs: list[Steps] = []
    for _ in range(RUNS):
        argv = [sys.executable, "-m", "flash_attn3_sm121.bench.first_use", device]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise BenchError(f"the first use failed: {said[-1]}", hint="flash-attn3 doctor")
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return {name: min(run[name] for run in runs) for name in runs[0]}


def first_use_rows(steps: Steps) -> list[tuple[str, ...]]:
    """The table: a head, and a row for each step."""
    rows = [("step", "time", "of importing torch")]
    rows += [(STEPS[name], format_seconds(took), f"{took / steps['torch']:.2%}") for name, took in steps.items()]
    return list(rows)


def first_use_table(steps: Steps) -> list[Block]:
    head, *rows = first_use_rows(steps)
    return [Table(head=head, rows=rows), "", f"the least over {RUNS} new processes"]


def first_use_json(steps: Steps, device: str) -> str:
    """The steps as JSON, with the machine and the commit."""
    import torch

    from flash_attn3_sm121.bench.machine import machine, stamped, today

    return stamped("first-use", date=today(), machine=machine(torch.device(device)), steps=steps)


if __name__ == "__main__":
    print(json.dumps(measure_here(sys.argv[1])))
