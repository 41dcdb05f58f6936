"""A second opinion on a few forward kernels: sentryward proves one small launch free of races, in every schedule.

Its input is a captured launch: the numbers among the parameters are given, the pointers are memory objects that do not
overlap. Its PTX is the kernel's, less the stores through generic addresses: those of the output, whose pointers went
through a shuffle that it cannot follow. So nothing is said of writes to the output, of other shapes, or of numbers.
"""

from __future__ import annotations

import ctypes
import json
import re
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci.prove.gb10.cases import Case
from ci.prove.gb10.executable import Executable
from flash_attn3_sm121.errors import CompileError, MissingPackageError

ROWS, KEYS, HEADS, GROUPS = 32, 64, 4, 2
# sentryward is asked about these calls. Their kernels take their tiles in an order that does not depend on data.
CALLS: dict[str, dict[str, int]] = {"dense": {}, "window": {"window_size_left": 20, "window_size_right": 0}}
NEEDS = {"dense": frozenset[str](), "window": frozenset({"local"})}

_ENTRY = re.compile(r"\.entry (?P<kernel>\w+)\(\s*\.param \.align \d+ \.b8 (?P<param>\w+)\[(?P<size>\d+)\]")
_COPY = re.compile(r"(?:mov\.[bu]64|cvta\.param\.u64)\s+(%\w+), ([%\w]+);")
_LOAD = re.compile(r"ld\.param\.(?:v(?P<count>\d)\.)?(?P<type>\w+)\s[^\[]*\[(?P<base>[%\w]+)(?:\+(?P<offset>\d+))?\]")
_GENERIC_STORE = re.compile(r"^\s*(?:@!?%p\d+\s+)?st\.(?:v\d\.)?[bufs]\d+\s.*$", re.MULTILINE)


def captured(gpu: Any, *, library: str, sizes: Mapping[str, int], call: str, dim: int) -> dict[str, Any]:
    """The last launch of a call, not carried out, with its parameters' bytes and where its tensors lie."""
    torch = gpu.torch
    launches: list[dict[str, Any]] = []

    def hook(kernel: bytes, grid: Any, block: Any, shared: int, arguments: Any) -> int:
        name = kernel.decode()
        parameters = ctypes.string_at(arguments[0], sizes[name]).hex()
        launches.append({"kernel": name, "grid": grid[:3], "block": block[:3], "shared": shared, "bytes": parameters})
        return 0

    numbers = ctypes.POINTER(ctypes.c_uint32)
    kind = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_char_p, numbers, numbers, ctypes.c_uint64, ctypes.POINTER(ctypes.c_void_p)
    )
    kept = kind(hook)
    ctypes.CDLL(library).stub_hook(kept)
    q = torch.zeros(1, ROWS, HEADS, dim, dtype=torch.bfloat16)
    k, v = (torch.zeros(1, KEYS, GROUPS, dim, dtype=torch.bfloat16) for _ in range(2))
    out, lse, *_ = gpu.call("fwd", q=q, k=k, v=v, num_splits=1, **CALLS[call])
    tensors = (q, k, v, out, lse)
    spans = [(x.data_ptr(), x.data_ptr() + x.numel() * x.element_size()) for x in tensors]
    return {**launches[-1], "spans": spans}


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel of a PTX file: where it is, and what it reads of its parameter, as (offset, type)."""

    text: str
    start: int
    end: int
    param: str
    reads: tuple[tuple[int, str], ...]

    @classmethod
    def of(cls, text: str, name: str) -> Kernel:
        entries = list(_ENTRY.finditer(text))
        (index,) = [i for i, entry in enumerate(entries) if entry["kernel"] == name]
        start = entries[index].start()
        end = entries[index + 1].start() if index + 1 < len(entries) else len(text)
        param, body = entries[index]["param"], text[start:end]
        bases = {param}
        for target, source in _COPY.findall(body):
            bases |= {target} if source in bases else set()
        reads = set()
        for load in _LOAD.finditer(body):
            if load["base"] not in bases:
                raise CompileError(f"{name}: a parameter is read through {load['base']}, which is not followed")
            for i in range(int(load["count"] or 1)):
                reads.add((int(load["offset"] or 0) + i * _bytes(load["type"]), load["type"]))
        return cls(text=text, start=start, end=end, param=param, reads=tuple(sorted(reads)))

    @property
    def edited(self) -> tuple[str, int]:
        """The file without the kernel's generic stores, and how many these were."""
        body, count = _GENERIC_STORE.subn("\t// a store of the output", self.text[self.start : self.end])
        return self.text[: self.start] + body + self.text[self.end :], count


def _bytes(kind: str) -> int:
    return int(re.sub(r"\D", "", kind)) // 8


def document(kernel: Kernel, launch: Mapping[str, Any]) -> dict[str, Any]:
    """sentryward's input: the launch, and the value of every number that the kernel reads; pointers are left open."""
    memory, arguments = bytes.fromhex(launch["bytes"]), []
    for offset, kind in kernel.reads:
        raw = memory[offset : offset + _bytes(kind)]
        number = int.from_bytes(raw, "little")
        if any(start <= number < end for start, end in launch["spans"]):
            continue
        value = struct.unpack("<f", raw)[0] if kind == "f32" else number
        arguments.append({"parameter": kernel.param, "offset": offset, "type": kind, "value": value})
    return {
        "schema": "spverify.kernel-input/v1",
        "entry": launch["kernel"],
        "launch": {
            "grid_dim": launch["grid"],
            "block_dim": launch["block"],
            "dynamic_shared_bytes": launch["shared"],
        },
        "arguments": arguments,
    }


def opinion(executable: Executable, call: str, dim: int, *, tool: str, folder: Path, timeout: int) -> dict[str, Any]:
    """Ask sentryward about a call's launch. `result` is "race_free" only where it proved both of its checks."""
    files = executable.needed(Case(op="fwd", dtype="bf16", dim=dim))
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    sizes = {found["kernel"]: int(found["size"]) for text in texts.values() for found in _ENTRY.finditer(text)}
    given = {"library": str(executable.library), "sizes": sizes, "call": call, "dim": dim}
    launch = executable.run("ci.prove.gb10.sentry:captured", given, sms=1, ptx=()).result
    (text,) = [text for text in texts.values() if f".entry {launch['kernel']}(" in text]
    kernel = Kernel.of(text, launch["kernel"])
    edited, removed = kernel.edited
    ptx, described = folder / f"sentry-{call}-hd{dim}.ptx", folder / f"sentry-{call}-hd{dim}.json"
    ptx.write_text(edited, encoding="utf-8")
    described.write_text(json.dumps(document(kernel, launch)), encoding="utf-8")
    argv = [tool, str(ptx), "--input", str(described), "--timeout", str(timeout)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise MissingPackageError(
            f"there is no {tool}", hint="pip install sentryward==0.1.1, and name it: --sentryward"
        ) from error
    try:
        found = json.loads(done.stdout)
    except ValueError as error:
        raise CompileError(f"$ {' '.join(argv)}\nexit code {done.returncode}\n{done.stderr[-4000:]}") from error
    return {
        "call": call,
        "head_dim": dim,
        "kernel": launch["kernel"],
        "grid": launch["grid"],
        "stores_left_out": removed,
        "result": found["result"],
        "checks": found.get("checks", {}),
        "diagnostics": found.get("diagnostics", []),
        "seconds": round(found.get("pipeline_elapsed_seconds", timeout)),  # neither is told of one that was cut off
        "peak_mib": round(found.get("peak_rss_mib", 0)),
    }
