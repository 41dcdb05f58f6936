"""Run a set of cases and write each down at once, before and after.

    python -m ci.prove.gpu.probes.loop SOURCE --out FILE

SOURCE is `module:function`, a function that gives GpuCases. The file is one JSON document a line: what was written
stays when the process dies, and the line that says a case began names the one that killed it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

import flash_attn3_sm121
from ci.prove.gpu.probes.compare import GpuCase
from flash_attn3_sm121.errors import BackendError, FlashAttn3Error

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# The device is unusable after these; the next process starts with the next case.
POISONED = 75
# Refusals that count as failures: the library is there and does not work.
BROKEN = ("the canary found", "cannot be loaded", "did not compile")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", metavar="MODULE:FUNCTION")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--dtype", action="append", choices=tuple(DTYPES))
    parser.add_argument("--sample", type=int, default=1, metavar="N", help="every Nth case only")
    parser.add_argument("--from", dest="first", type=int, default=0, metavar="I")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def refusal(error: BackendError) -> tuple[str, str]:
    """(status, reason) of a refusal; the reason is the line about the native backend in the error."""
    lines = [line.strip() for line in str(error).splitlines()]
    reason = next((line.removeprefix("not native: ") for line in lines if line.startswith("not native: ")), lines[0])
    return ("failed" if any(word in reason for word in BROKEN) else "refused"), reason


def attempt(case: GpuCase, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Run one case and describe its result. An exception is a result too: the next case runs after it."""
    torch.manual_seed(zlib.crc32(case.name.encode()))
    findings: list[dict[str, Any]] = []
    status, reason, poisoned = "ok", "", False
    try:
        for finding in case.findings(device, dtype):
            findings.append(
                {"what": finding.what, "error": finding.error, "allowed": finding.allowed, "share": finding.share}
            )
            if not finding.good:
                status = "wrong"
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if not findings:
            status, reason = "failed", "the case compared nothing"
    except BackendError as error:
        status, reason = refusal(error)
    except Exception as error:  # noqa: BLE001 - whatever a case raises is its result, written down with its words
        status, reason = "failed", f"{type(error).__name__}: {str(error)[:1500]}"
        poisoned = "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError"
    return {"status": status, "reason": reason, "findings": findings, "poisoned": poisoned}


def run_all(cases: Sequence[tuple[str, GpuCase]], args: argparse.Namespace, out: TextIO) -> int:
    def write(**line: Any) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    device = torch.device(args.device)
    write(event="start", planned=len(cases), package=str(flash_attn3_sm121.__file__), torch=torch.__version__)
    with flash_attn3_sm121.use_backend(args.backend):
        for number in range(args.first, len(cases)):
            dtype, case = cases[number]
            write(event="begin", number=number, name=case.name, dtype=dtype)
            begun = time.monotonic()
            result = attempt(case, device, DTYPES[dtype])
            took = round(time.monotonic() - begun, 4)
            write(event="end", number=number, name=case.name, dtype=dtype, seconds=took, **result)
            if result["poisoned"]:
                return POISONED
    write(event="done")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    module, _, function = args.source.partition(":")
    try:
        cases: Sequence[GpuCase] = getattr(importlib.import_module(module), function)()
        dtypes = args.dtype or list(DTYPES)
        pairs = [(dtype, case) for case in cases for dtype in dtypes][:: args.sample]
        with args.out.open("a", encoding="utf-8") as out:
            return run_all(pairs, args, out)
    except FlashAttn3Error as error:
        print(f"gpu-test: error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
