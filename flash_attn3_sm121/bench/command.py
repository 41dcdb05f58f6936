"""The command line of `flash-attn3 bench`."""

from __future__ import annotations

import argparse
import fnmatch
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flash_attn3_sm121.bench.workloads import Workload, suite
from flash_attn3_sm121.call.facts import device_named
from flash_attn3_sm121.console import Block, Narrator, Table, format_bytes, show
from flash_attn3_sm121.errors import BenchError, UsageError
from flash_attn3_sm121.files import put_file

if TYPE_CHECKING:
    import torch

    from flash_attn3_sm121.bench.contenders import Contender
    from flash_attn3_sm121.bench.result import Report

QUICK_SECONDS, FULL_SECONDS = 3.0, 15.0
MEMORY_SHARE = 0.25  # of the device's memory, for contenders that write out every score


def configure_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="small shapes, few rounds: under two minutes on a CPU")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    parser.add_argument("--workload", action="append", metavar="GLOB", help="only these (repeatable; see --list)")
    parser.add_argument(
        "--backend", action="append", metavar="NAME", help="only these contenders, beside dense-mask (repeatable)"
    )
    parser.add_argument("--seconds", type=float, help="timing budget of one workload")
    parser.add_argument("--list", action="store_true", help="show workloads and contenders, run nothing")
    parser.add_argument("--all", action="store_true", help="list refusals in the table as well")
    files = parser.add_argument_group("results")
    files.add_argument("--json", metavar="FILE", help="the whole run as JSON (- for stdout instead of the table)")
    files.add_argument(
        "--share",
        action="store_true",
        help="the JSON, named after device and day: the one file to send, no paths in it",
    )
    files.add_argument("--csv", metavar="FILE", help="one line a contender and workload")
    files.add_argument(
        "--html", metavar="FILE", help="a report in one file, with plots where matplotlib is (the extra [bench])"
    )
    files.add_argument("--png", metavar="FILE", help="the plots as a picture (needs matplotlib: the extra [bench])")
    files.add_argument("--markdown", metavar="FILE", help="the table for an issue (- for stdout instead)")
    files.add_argument("--note", action="append", metavar="TEXT", help="a remark kept with the results (repeatable)")
    files.add_argument("--from-json", metavar="FILE", help="write the files above from an earlier run")
    other = parser.add_argument_group("other jobs")
    other.add_argument("--compare", nargs=2, metavar=("A.json", "B.json"), help="two runs, line by line")
    other.add_argument("--overhead", action="store_true", help="Python-side cost of a call, against upstream's layer")
    other.add_argument("--first-use", action="store_true", help="imports, library, canary, first call, each apart")
    other.add_argument("--count", action="store_true", help="launches and bytes of the fallback on CUDA, counted here")
    other.add_argument(
        "--splits", metavar="DEVICE", help="decoding on paper: the bandwidth that num_splits leaves unused"
    )
    other.add_argument("--roofline", metavar="DEVICE", help="what a device could reach at best, on paper (gb10, ...)")


def do_bench(args: argparse.Namespace) -> int:
    if _other_job(args):
        return 0
    from flash_attn3_sm121.bench.contenders import contenders

    if args.seconds is not None and not args.seconds > 0:
        raise UsageError(f"--seconds: expected more than 0, found {args.seconds:g}")
    device = _device(args.device)
    works = pick_workloads(suite(device.type, quick=args.quick), args.workload)
    everyone = pick_contenders(contenders(device), args.backend)
    if args.list:
        show(_listing(works, everyone))
        return 0
    report = _measure(args, device, works, everyone)
    write(report, args)
    _fail_on_our_mistakes(report)
    return 0


def _other_job(args: argparse.Namespace) -> bool:
    """Do what is asked for beside a run of the bench; False where nothing is."""
    if args.compare:
        from flash_attn3_sm121.bench.compare import comparison
        from flash_attn3_sm121.bench.result import Report

        show(comparison(*(Report.read(Path(name)) for name in args.compare)))
    elif args.roofline:
        from flash_attn3_sm121.bench.roofline import roofline
        from flash_attn3_sm121.native.location import locate

        show(roofline(args.roofline, locate().folder))
    elif args.overhead:
        from flash_attn3_sm121.bench.overhead import overhead_costs, overhead_json, overhead_table

        costs, why = overhead_costs()
        _show_or_save(overhead_table(costs, why), args.json, lambda: overhead_json(costs))
    elif args.first_use:
        from flash_attn3_sm121.bench.first_use import first_use, first_use_json, first_use_table

        device = str(_device(args.device))
        steps = first_use(device)
        _show_or_save(first_use_table(steps), args.json, lambda: first_use_json(steps, device))
    elif args.splits:
        from flash_attn3_sm121.bench import splits

        show(splits.table(args.splits))
    elif args.count:
        from flash_attn3_sm121.bench.counts import table, to_json

        _show_or_save(table(), args.json, to_json)
    elif args.from_json:
        from flash_attn3_sm121.bench.result import Report

        write(Report.read(Path(args.from_json)), args)
    else:
        return False
    return True


def _show_or_save(blocks: Iterable[Block], file: str | None, text: Callable[[], str]) -> None:
    """Show a table and write its data into the file of `--json`; `-` is stdout, for the data alone."""
    if file == "-":
        print(text(), end="")
        return
    if file:
        _save(Path(file), text().encode())
    show(blocks)


def _device(name: str | None) -> torch.device:
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return device_named(name)


def pick_workloads(works: Sequence[Workload], globs: Sequence[str] | None) -> list[Workload]:
    if not globs:
        return list(works)
    unknown = [glob for glob in globs if not any(fnmatch.fnmatch(work.name, glob) for work in works)]
    if unknown:
        names = ", ".join(work.name for work in works)
        raise UsageError(f"--workload: nothing is called {', '.join(unknown)}; there are {names}")
    return [work for work in works if any(fnmatch.fnmatch(work.name, glob) for glob in globs)]


def pick_contenders(everyone: Sequence[Contender], names: Sequence[str] | None) -> list[Contender]:
    if not names:
        return list(everyone)
    known = [contender.name for contender in everyone]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UsageError(
            f"--backend: nothing is called {', '.join(unknown)}; on this device there are {', '.join(known)}"
        )
    return [contender for contender in everyone if contender.name in {*names, "dense-mask"}]


def _listing(works: Sequence[Workload], everyone: Sequence[Contender]) -> list[Block]:
    """What `--workload` and `--backend` may name."""
    shapes = []
    for work in works:
        size = f"{work.flops / 1e9:.3g} GFLOP, {format_bytes(work.bytes)}"
        shape = f"{work.heads}/{work.heads_kv} heads, D={work.head_dim}, {size}"
        shapes.append((work.name, f"{work.about} ({shape})"))
    contenders = [(contender.name, contender.about) for contender in everyone]
    return [
        Table(head=("workload", "what it is"), rows=shapes),
        "",
        Table(head=("contender", "what it is"), rows=contenders),
    ]


def _memory(device: torch.device) -> float:
    import os

    import torch

    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _measure(
    args: argparse.Namespace, device: torch.device, works: Sequence[Workload], everyone: Sequence[Contender]
) -> Report:
    from flash_attn3_sm121.bench.machine import commit, machine, today
    from flash_attn3_sm121.bench.measure import Budget, measure_ceiling
    from flash_attn3_sm121.bench.result import Report
    from flash_attn3_sm121.bench.session import Rules, measure_all

    started = time.monotonic()
    who = machine(device)
    narrate = Narrator()
    narrate.note(f"flash-attn3 bench: {who['device']}, {len(works)} workloads, {len(everyone)} contenders")
    dtype = works[0].dtype
    top = measure_ceiling(device, dtype)
    narrate.note(f"ceiling here and now: {dtype} matmul {top.tflops:.3g} TFLOP/s, copy {top.gbps:.3g} GB/s")
    seconds = args.seconds or (QUICK_SECONDS if args.quick else FULL_SECONDS)
    rules = Rules(
        budget=Budget(seconds=seconds, least=2 if args.quick else 3),
        memory_limit=MEMORY_SHARE * _memory(device),
        compile_everywhere=not args.quick or "flex" in (args.backend or ()),
        device=device,
    )
    results = measure_all(works, everyone, rules, top, narrate)
    spent = time.monotonic() - started
    return Report(
        date=today(),
        commit=commit(),
        command=_command(args),
        machine=who,
        dtype=dtype,
        ceiling_tflops=top.tflops,
        ceiling_gbps=top.gbps,
        seconds=spent,
        results=results,
        notes=tuple(args.note or ()),
    )


def _command(args: argparse.Namespace) -> str:
    """The command for the same run, without the names of result files: those may hold private paths."""
    words = ["flash-attn3", "bench"]
    words += ["--quick"] if args.quick else []
    for option, value in (("--device", args.device), ("--seconds", args.seconds)):
        words += [option, f"{value:g}" if isinstance(value, float) else value] if value is not None else []
    for option, values in (("--workload", args.workload), ("--backend", args.backend)):
        for value in values or ():
            words += [option, value]
    return shlex.join(words)


def shared_name(report: Report) -> str:
    """`bench-nvidia-gb10-2026-11-27.json`: what docs/results calls such a file."""
    device = "-".join(re.findall("[a-z0-9]+", report.title.lower()))
    return f"bench-{device}-{report.date[:10]}.json"


def write(report: Report, args: argparse.Namespace) -> None:
    """Write the files that were asked for. Print the table, unless an option has stdout (`-`) for something else."""
    from flash_attn3_sm121.bench.text import markdown, table, to_csv

    if args.share:
        _save(Path(shared_name(report)), report.to_json().encode())
    texts: list[tuple[str | None, Callable[[], str]]] = [
        (args.json, report.to_json),
        (args.csv, lambda: to_csv(report)),
        (args.markdown, lambda: markdown(report)),
    ]
    if args.html:
        from flash_attn3_sm121.bench.html import page

        texts.append((args.html, lambda: page(report)))
    for name, text in texts:
        if name == "-":
            print(text(), end="")
        elif name is not None:
            _save(Path(name), text().encode())
    if args.png:
        from flash_attn3_sm121.bench.plots import png

        _save(Path(args.png), png(report))
    if all(name != "-" for name, _ in texts):
        show(table(report, unserved=args.all))


def _save(path: Path, data: bytes) -> None:
    try:
        put_file(path, data)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    print(f"wrote {path} ({format_bytes(len(data))})", file=sys.stderr)


def _fail_on_our_mistakes(report: Report) -> None:
    from flash_attn3_sm121.bench.text import OURS

    wrong = [
        f"{result.workload.name} / {entry.contender}: {entry.why}"
        for result in report.results
        for entry in result.entries
        if entry.contender in OURS and entry.status in ("wrong", "failed")
    ]
    if wrong:
        raise BenchError("a backend of ours gave no right answer:\n  " + "\n  ".join(wrong), hint="flash-attn3 doctor")
