"""The program that ninja runs for each file: it measures the compiler and stores the object in the content cache.

`python -m ci.build.unit OPTIONS -- COMPILER...`, in the family's work folder. With `--key` the object, its report and
its PTX are stored under that key; with `--cost` only what compiling took is written down, for `python -m ci measure`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ci.build.compile import disk_errors, environment, failure
from ci.cache.folders import file_sha256, locked, remove_tree
from ci.cache.objects import KernelUsage, ObjectReport, ObjectStore
from ci.process import Measured, measured
from flash_attn3_sm121.errors import FlashAttn3Error
from flash_attn3_sm121.files import put_file

_COMPILING = re.compile(r"Compiling entry function '(?P<kernel>[^']+)' for '(?P<image>[^']+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SMEM = re.compile(r"(\d+) bytes smem")


def kernel_usage(text: str) -> tuple[KernelUsage, ...]:
    """The registers and spills of each kernel and image, read from ptxas' verbose output in its order. Pure."""
    usages: list[KernelUsage] = []
    kernel: tuple[str, str] | None = None
    spills = (0, 0, 0)
    for line in text.splitlines():
        if match := _COMPILING.search(line):
            kernel, spills = (match["kernel"], match["image"]), (0, 0, 0)
        elif match := _SPILLS.search(line):
            spills = (int(match[1]), int(match[2]), int(match[3]))
        elif (match := _USED.search(line)) and kernel is not None:
            smem = _SMEM.search(line)
            usages.append(
                KernelUsage(
                    kernel=kernel[0],
                    image=kernel[1],
                    registers=int(match[1]),
                    stack=spills[0],
                    spill_stores=spills[1],
                    spill_loads=spills[2],
                    static_smem=int(smem[1]) if smem else 0,
                )
            )
            kernel = None
    return tuple(usages)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ci.build.unit")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--unit", required=True, help="the unit's name, which its files are named by")
    parser.add_argument("--launcher")
    parser.add_argument("--fingerprint", default="", help="of the toolchain")
    result = parser.add_mutually_exclusive_group(required=True)
    result.add_argument("--key", help="store the object under this key")
    result.add_argument("--cost", type=Path, help="store nothing, write there what compiling took")
    parser.add_argument("compiler", nargs=argparse.REMAINDER, help="-- and the compiler's command line")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    args.compiler = args.compiler[1:]  # the two dashes
    try:
        with disk_errors(args.cache):
            print(_measure(args) if args.cost else _store(args))
    except FlashAttn3Error as error:
        print(error)
        return error.exit_code
    return 0


def _store(args: argparse.Namespace) -> str:
    """Compile into the object cache, unless another build has done so. Returns a line that says what it took."""
    store = ObjectStore(cache=args.cache)
    with locked(args.cache, store.entry(args.key)):
        if store.find(args.key) is not None:
            return f"{args.unit}: made by another build meanwhile"
        ended, output = _compiled(args)
        made = Path("obj", f"{args.unit}.o")
        ptx = _ptx(args)
        report = ObjectReport(
            unit=args.unit,
            key=args.key,
            sha256=file_sha256(made),
            size=made.stat().st_size,
            cpu_s=ended.cpu_s,
            wall_s=ended.wall_s,
            rss_gb=ended.rss_gb,
            usage=kernel_usage(output),
            ptx={name: hashlib.sha256(text).hexdigest() for name, text in ptx.items()},
        )
        store.put(report, made=made, log=output, ptx=ptx)
        _clean(args)
    kept = f", no PTX kept ({args.launcher} takes no --keep)" if args.launcher and report.usage else ""
    return f"{args.unit}: {report.cpu_s:.0f} CPU s, {report.rss_gb:.1f} GB, {report.size / 1e6:.2f} MB{kept}"


def _ptx(args: argparse.Namespace) -> dict[str, bytes]:
    """The PTX that nvcc left, by file name. A compiler cache leaves none, and a C++ file has none."""
    return {path.name: path.read_bytes() for path in sorted(Path("keep", args.unit).glob("*.ptx"))}


def _measure(args: argparse.Namespace) -> str:
    ended, _ = _compiled(args)
    _clean(args)
    cost = {name: value for name, value in asdict(ended).items() if name != "code"}
    put_file(args.cost, json.dumps(cost) + "\n")
    return f"{args.unit}: {ended.cpu_s:.0f} CPU s, {ended.rss_gb:.1f} GB"


def _compiled(args: argparse.Namespace) -> tuple[Measured, str]:
    """Run the compiler and return its cost and output. Raises CompileError or DiskError; the log is kept then."""
    here = Path.cwd()
    _clean(args)
    for folder in (Path("keep", args.unit), Path("obj"), Path("tmp")):
        folder.mkdir(parents=True, exist_ok=True)
    log = Path("keep", f"{args.unit}.log")
    env = environment(os.environ, folder=here, launcher=args.launcher, fingerprint=args.fingerprint)
    ended = measured(args.compiler, cwd=here, env=env, log=log)
    output = log.read_text(encoding="utf-8", errors="replace")
    if ended.code == 0:
        return ended, output
    _clean(args)
    kept = args.cache / "logs" / f"{args.unit}-{(args.key or 'measured')[:12]}.log"
    put_file(kept, f"$ {shlex.join(args.compiler)}\n{output}\nexit code {ended.code}\n")
    raise failure(args.compiler, ended.code, output, log=kept, work=here)


def _clean(args: argparse.Namespace) -> None:
    """Remove what a compiler makes in the work folder."""
    if (keep := Path("keep", args.unit)).exists():
        remove_tree(keep)
    for file in (Path("keep", f"{args.unit}.log"), Path("obj", f"{args.unit}.o"), Path("obj", f"{args.unit}.d")):
        file.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
