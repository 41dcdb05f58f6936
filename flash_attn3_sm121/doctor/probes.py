"""Checks that may end the process they run in. Each runs in a child, which prints its answer as JSON on a line.

`python -m flash_attn3_sm121.doctor.probes NAME ARGUMENT...` answers one; `ask` starts that and reads the answer.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

SECONDS = 180


def ask(name: str, *arguments: str, without: str | None = None) -> dict[str, Any]:
    """The child's answer; {"error": ...} with the last line of its output where it died or hung.

    `without` is a variable of the environment that the child does not get.
    """
    command = [sys.executable, "-m", __spec__.name, name, *arguments]
    env = {key: value for key, value in os.environ.items() if key != without}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, env=env)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {SECONDS} s"}
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]  # others may print as well, even last
    if done.returncode == 0 and answers:
        answer: dict[str, Any] = json.loads(answers[-1])
        return answer
    if done.returncode < 0:
        return {"error": f"the process was ended by {signal.Signals(-done.returncode).name}"}
    said = (done.stderr or done.stdout).strip().splitlines()
    return {"error": said[-1] if said else f"exit code {done.returncode}, no output"}


def _torch() -> dict[str, Any]:
    import torch

    answer: dict[str, Any] = {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "arch_list": torch.cuda.get_arch_list() if torch.version.cuda else [],
        "devices": [],
        "cuda_error": None,
    }
    if torch.version.cuda:
        try:
            seen = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
            answer["devices"] = [(device.name, (device.major, device.minor)) for device in seen]
        except RuntimeError as error:  # what torch raises for every driver problem
            answer["cuda_error"] = str(error).splitlines()[0]
    return answer


def _load(path: str, namespace: str) -> dict[str, Any]:
    import torch

    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except OSError as error:
        return {"error": str(error)}
    if not hasattr(getattr(torch.ops, namespace), "fwd"):
        return {"error": f"it loads, and registers no {namespace}::fwd"}
    return {"ops": [name for name in ("fwd", "bwd") if hasattr(getattr(torch.ops, namespace), name)]}


def _canary() -> dict[str, Any]:
    """Make one native call. The answer is the canary's: passed, skipped, or failed with its message."""
    import warnings

    import torch

    import flash_attn3_sm121
    from flash_attn3_sm121.errors import BackendError

    refused = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            q, k, v = (torch.randn(1, 64, 2, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
            with flash_attn3_sm121.use_backend("native"):
                flash_attn3_sm121.flash_attn_func(q, k, v, causal=True)
            torch.cuda.synchronize()
        except (BackendError, torch.OutOfMemoryError) as error:
            refused = str(error).splitlines()[0]  # a failed canary refuses too, after its warning
    loud = [str(warning.message) for warning in caught if "canary" in str(warning.message).lower()]
    if loud:
        return {"canary": f"failed: {loud[0]}"}
    return {"canary": "passed" if refused is None else f"skipped: {refused}"}


def _transformers() -> dict[str, Any]:
    """Ask transformers' own detection function, which its models call."""
    import torch
    from transformers.utils import is_flash_attn_3_available

    return {"detects": bool(is_flash_attn_3_available()), "cuda": torch.cuda.is_available()}


def _torch_hook() -> dict[str, Any]:
    import torch.nn.attention

    from flash_attn3_sm121.call.torches import lacking

    there = hasattr(torch.nn.attention, "restore_flash_attention_impl")
    return {"available": there, "why": "; ".join(lacking(torch.__version__))}


def _override() -> dict[str, Any]:
    """Whether the override is on in a new process of this Python."""
    from flash_attn3_sm121.hub.patch import active

    config = active()
    return {"repos": [] if config is None else sorted(config.repos), "hub": None if config is None else config.hub}


QUESTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "torch": _torch,
    "load": _load,
    "canary": _canary,
    "transformers": _transformers,
    "torch_hook": _torch_hook,
    "override": _override,
}


def main(arguments: list[str]) -> int:
    print(json.dumps(QUESTIONS[arguments[0]](*arguments[1:])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
