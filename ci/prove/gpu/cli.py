"""`python -m ci gpu-test`: what a wheel does on this machine's device, in a few minutes, as one JSON and one HTML."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ci import ROOT
from ci.process import commit_of, execute
from ci.prove.gpu import report, suite
from ci.prove.gpu.report import Run
from ci.prove.gpu.runner import run_all
from ci.prove.gpu.stage import Stage, StageResult
from ci.prove.gpu.wheelfolder import OpenedWheel, open_wheel
from flash_attn3_sm121.console import Narrator
from flash_attn3_sm121.doctor import collect
from flash_attn3_sm121.errors import UsageError, VerifyError
from flash_attn3_sm121.files import put_file

EPILOG = """It builds nothing and needs no network: torch, this checkout and the wheel are enough. Each stage is a
process of its own; one that crashes, hangs or runs out of time is recorded and the next one runs.
Exit code 0: all right. 15: something is wrong, see gpu-test.html. FLASH_ATTN3_* variables are not passed on."""


def configure_gpu_test(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for gpu-test.json and gpu-test.html")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything together (default: 8)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try the script itself")
    parser.add_argument("--proxy", action="store_true", help="the wheel is a proxy build: allow it, and say so")
    parser.add_argument("--commit", default="", help="what to write down as the wheel's commit")
    parser.add_argument("--stage", action="append", metavar="NAME", help="only these (may be given several times)")
    parser.add_argument("--sample", type=int, default=1, metavar="N", help="every Nth case only")


def sanitizer() -> tuple[str | None, bool]:
    """(the path of compute-sanitizer or None, whether it can be restricted to our kernels)."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    places = [os.environ.get("PATH", ""), *(str(Path(home) / "bin") for home in homes if home)]
    path = shutil.which("compute-sanitizer", path=os.pathsep.join(places))
    if path is None:
        return None, False
    return path, "--kernel-regex" in execute([path, "--help"], timeout=60).stdout


def machine(device: str) -> dict[str, Any]:
    """The driver's GPU and this Python's torch, asked in a child process: a broken torch must not end the run."""
    facts: dict[str, Any] = {"name": platform.processor() or platform.machine()}
    index, (driver, _, devices) = int(device.partition(":")[2] or 0), collect.gpus()
    if device.startswith("cuda") and index < len(devices):
        gpu = devices[index]
        facts = {"name": gpu.name, "driver": driver, "capability": "{}.{}".format(*gpu.capability)}
    torch = collect.torch_facts()
    facts |= {"torch": torch.version or "does not import", "CUDA": torch.cuda or ""}
    return {**facts, "python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}


def environment(opened: OpenedWheel, *, root: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The children's environment: the wheel's package comes before the checkout, which has this harness."""
    kept = {name: value for name, value in environ.items() if not name.startswith("FLASH_ATTN3_")}
    folder, dropin = opened.paths
    old = [path for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    kept["PYTHONPATH"] = os.pathsep.join((str(folder), str(root), str(dropin), *old))
    kept |= {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    if opened.proxy:
        kept["FLASH_ATTN3_ALLOW_PROXY"] = "1"
    return kept


def chosen(stages: Sequence[Stage], names: Sequence[str] | None) -> tuple[Stage, ...]:
    unknown = sorted(set(names or ()) - {stage.name for stage in stages})
    if unknown:
        known = ", ".join(stage.name for stage in stages)
        raise UsageError(f"--stage: nothing is called {', '.join(unknown)}; there are {known}")
    return tuple(stage for stage in stages if not names or stage.name in names)


def write(run: Run, out: Path, work: Path) -> None:
    """Write both files, each replaced in one step: a run that is cut off leaves whole ones."""
    put_file(out / "gpu-test.json", report.to_json(run))
    put_file(out / "gpu-test.html", report.to_html(run))
    for result in run.results:
        for name in result.files:
            if not (out / name).exists():
                shutil.copyfile(work / name, out / name)


def do_gpu_test(args: argparse.Namespace) -> int:
    if args.minutes <= 0 or args.sample < 1:
        raise UsageError("--minutes must be above 0 and --sample at least 1")
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-test-") as name:
        folder, work = Path(name) / "wheel", Path(name) / "work"
        work.mkdir()
        opened = open_wheel(args.wheel, folder)
        if opened.proxy and not args.proxy:
            raise UsageError(f"{opened.name} is a proxy build", hint="add --proxy (make test-gpu PROXY=1) to test it")
        if args.proxy and not opened.proxy:
            raise UsageError(f"--proxy: {opened.name} is no proxy build")
        tool, narrow = sanitizer()
        setting = suite.Setting(
            python=sys.executable, device=args.device, native=bool(opened.facts), proxy=opened.proxy, root=ROOT,
            sanitizer=tool, kernel_filter=narrow, sample=args.sample, minutes=args.minutes,
            **{name: importlib.util.find_spec(name) is not None for name in ("pytest", "triton", "transformers")},
        )  # fmt: skip
        stages = chosen(suite.stages(setting), args.stage)
        words = ["python", "-m", "ci", "gpu-test", "--wheel", opened.name, "--device", args.device]
        words += ["--minutes", f"{args.minutes:g}", *(["--proxy"] if args.proxy else [])]
        facts = machine(args.device)

        def so_far(results: Sequence[StageResult]) -> Run:
            return Run(
                date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
                commit=args.commit or commit_of(ROOT), command=shlex.join(words), device=args.device, machine=facts,
                wheel=opened.described(), minutes=args.minutes, planned=tuple(stage.name for stage in stages),
                results=tuple(results),
            )  # fmt: skip

        results = run_all(
            stages, cwd=work, env=environment(opened, root=ROOT, environ=os.environ), seconds=args.minutes * 60,
            keep=lambda some: write(so_far(some), args.out, work),
        )  # fmt: skip
        done = so_far(results)
        write(done, args.out, work)
    sys.stdout.write(report.to_markdown(done))
    Narrator().note(f"wrote {args.out / 'gpu-test.json'} and {args.out / 'gpu-test.html'}")
    if not done.good:
        raise VerifyError(f"gpu-test: {done.verdict}", hint=f"read {args.out / 'gpu-test.html'}")
    return 0
