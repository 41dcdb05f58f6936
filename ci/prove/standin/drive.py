"""Run calls through a stand-in library, in a process of its own: drive.py LIBRARY NAMESPACE DEVICE, calls on stdin.

DEVICE and CALLS are JSON (see calls.py); the answer is JSON on stdout: for each call what it launched, or the exception
that it raised. A process asks for a device's properties once, so each device needs its own.
"""

from __future__ import annotations

import ctypes
import json
import math
import sys
from typing import Any

DTYPES = ("bfloat16", "float16", "float8_e4m3fn")


class Library:
    """The loaded library: its ops, and the controls of the runtime inside."""

    def __init__(self, path: str, namespace: str, device: dict[str, int]) -> None:
        import torch

        self.torch = torch
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
        self.ops = getattr(torch.ops, namespace)
        self.controls = ctypes.CDLL(path)
        self.controls.stub_take.restype = ctypes.c_char_p
        self.controls.stub_device(*(device[name] for name in ("major", "minor", "sms", "l2", "smem")))

    def fail(self, call: str, code: int) -> None:
        self.controls.stub_fail(call.encode(), code)

    def take(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.controls.stub_take().decode().splitlines()]

    def tensor(self, shape: list[int], dtype: str, offset: int = 0) -> Any:
        """Zeros; `offset` elements behind the start of their memory."""
        count = math.prod(shape)
        return self.torch.zeros(count + offset, dtype=getattr(self.torch, dtype))[offset:].view(shape)

    def call(self, name: str, arguments: dict[str, Any], elsewhere: str = "") -> list[dict[str, Any]]:
        """Call an op with CPU tensors under CUDA's dispatch key; a tensor is {"shape": ..., "dtype": ...}.

        `elsewhere`: the tensor that says that it is on another device than the others.
        """
        values = {key: self.tensor(**value) if isinstance(value, dict) else value for key, value in arguments.items()}
        if "qkv_dtype" in values:
            values["qkv_dtype"] = getattr(self.torch, values["qkv_dtype"])
        self.take()
        self.controls.stub_elsewhere(ctypes.c_void_p(values[elsewhere].data_ptr() if elsewhere else None))
        getattr(self.ops, name).default._op_dk(self.torch._C.DispatchKey.CUDA, **values)
        return self.take()


def launches_of(path: str, namespace: str, device: dict[str, int], calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The launches of each call. A call may ask for one of the runtime's functions to fail."""
    library = Library(path, namespace, device)
    answers: list[dict[str, Any]] = []
    for call in calls:
        library.fail(call.get("fail", ""), 700)
        try:
            launches = library.call(call["op"], call["arguments"], call.get("elsewhere", ""))
            answers.append({"launches": launches, "error": None})
        except RuntimeError as error:
            answers.append({"launches": library.take(), "error": str(error)})
        finally:
            library.fail("", 0)
    return answers


if __name__ == "__main__":
    where, space, properties = sys.argv[1:4]
    json.dump(launches_of(where, space, json.loads(properties), json.load(sys.stdin)), sys.stdout)
