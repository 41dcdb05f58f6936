"""`flash-attn3 selftest`: every feature on a device, compared with fp64 on the CPU, in about a minute."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from flash_attn3_sm121.call.facts import device_named
from flash_attn3_sm121.console import Narrator, format_seconds, show
from flash_attn3_sm121.errors import UsageError, VerifyError
from flash_attn3_sm121.selftest.cases import cases
from flash_attn3_sm121.selftest.reference import Case

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DTYPES = ("bf16", "fp16", "fp32")
# Largest error allowed, as a share of the largest wanted value: a few roundings of the result and of the weights.
ALLOWED = {"bf16": 2.0e-2, "fp16": 3.0e-3, "fp32": 2.0e-5}
EPILOG = """Every result is compared with the plain formula in fp64 on the CPU.
Exit code 0: everything agrees. 15: something does not; the cases and how far they are off are listed."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One compared tensor."""

    case: str
    what: str
    dtype: str
    error: float
    allowed: float

    @property
    def good(self) -> bool:
        return self.error <= self.allowed  # a NaN is not


def configure_selftest(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the GPU if torch sees one)")
    parser.add_argument(
        "--dtype", choices=DTYPES, action="append", help="may be given several times (default: bf16, fp16)"
    )
    parser.add_argument("--backend", choices=("auto", "native", "flex", "sdpa"), default="auto")
    parser.add_argument("--match", default="", metavar="TEXT", help="only the cases whose name holds TEXT")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--json", action="store_true", help="results as JSON on stdout")


def deviation(got: Tensor, wanted: Tensor) -> float:
    """The largest difference as a share of the largest wanted value.

    Infinite where shapes differ, or where an infinity is not at the same place in both.
    """
    import torch

    have, want = got.detach().cpu().double(), wanted.detach()
    if have.shape != want.shape:
        return float("inf")
    finite = torch.isfinite(want)
    if not bool(((have == want) | finite).all()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    gap = (have[finite] - want[finite]).abs().max()
    return float(gap / want[finite].abs().max().clamp_min(1.0))


def check(case: Case, device: torch.device, dtype_name: str) -> list[Result]:
    """Run one case; the seed is fixed, so a failure can be repeated."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype_name]
    torch.manual_seed(0)
    return [
        Result(case=case.name, what=what, dtype=dtype_name, error=deviation(got, wanted), allowed=ALLOWED[dtype_name])
        for what, got, wanted in case.results(device, dtype)
    ]


def _device(text: str | None) -> torch.device:
    import torch

    if text is not None:
        return device_named(text)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def do_selftest(args: argparse.Namespace) -> int:
    chosen = [case for case in cases() if args.match in case.name]
    if args.list:
        print("\n".join(case.name for case in chosen))
        return 0
    if not chosen:
        raise UsageError(f"no case's name holds {args.match!r}", hint="flash-attn3 selftest --list")
    import flash_attn3_sm121

    device, started, results = _device(args.device), time.monotonic(), []
    names = args.dtype or ["bf16", "fp16"]
    work = [(name, case) for name in names for case in chosen]
    narrate = Narrator()
    progress = narrate.progress("selftest", len(work), unit="cases")
    with flash_attn3_sm121.use_backend(args.backend), progress:
        for name, case in work:
            progress.tell(f"{name} {case.name}")
            compared = check(case, device, name)
            results += compared
            progress.advance()
            for bad in (result for result in compared if not result.good):
                narrate.note(
                    f"WRONG {bad.dtype} {bad.case}: {bad.what} is off by {bad.error:.3g}, allowed {bad.allowed:.3g}",
                    style="red",
                )
    return _summary(results, args, device, time.monotonic() - started)


def _summary(results: list[Result], args: argparse.Namespace, device: torch.device, seconds: float) -> int:
    bad = [result for result in results if not result.good]
    if args.json:
        rows = [{**asdict(result), "good": result.good} for result in results]
        json.dump(
            {"device": str(device), "backend": args.backend, "seconds": round(seconds, 1), "results": rows}, sys.stdout
        )
        print()
    else:
        lines = []
        for name in args.dtype or ["bf16", "fp16"]:
            mine = [result for result in results if result.dtype == name]
            worst = max(mine, key=lambda result: result.error / result.allowed)
            share = f"{worst.error:.2g} of {worst.allowed:.2g} allowed"
            lines.append(f"{name}: {len(mine)} results, worst {share} ({worst.case}, {worst.what})")
        lines.append(
            f"{len(results) - len(bad)} of {len(results)} agree with fp64 on {device} in {format_seconds(seconds)}"
        )
        show(lines)
    if bad:
        raise VerifyError(
            f"{len(bad)} of {len(results)} results are wrong on {device}", hint="flash-attn3 doctor  # and report this"
        )
    return 0
