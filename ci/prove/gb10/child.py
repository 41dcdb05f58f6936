"""The process in which kernels are executed: python -m ci.prove.gb10.child, a document on stdin, the answer on stdout.

The document names the library, its PTX, the device to pose as, and a function `module:name` that is called with a
`Gpu` and arguments; the answer is what it returned, with the findings and the launches.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any


class Gpu:
    """A family library's ops on CPU tensors, computed as a device of that many SMs would compute them.

    `settings` may be changed between calls: seed (0: warps and blocks in order), lazy (copies land at their wait),
    poison (what shared memory holds before it is written), limit (instructions a launch), named (False: named barriers
    order nothing). Tensors made while this exists are filled with 0xFF before they are written.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        sys.path.insert(0, document["executor"])
        import gb10_executor  # type: ignore[import-not-found]
        import torch

        self.torch = torch
        self.native = gb10_executor
        self.settings = gb10_executor.Settings()
        self.settings.sms = document["device"]["sms"]
        for name, value in document["settings"].items():
            setattr(self.settings, name, value)
        self.machine = gb10_executor.Machine(self.settings)
        for path in document["ptx"]:
            self.machine.load(Path(path).read_text(encoding="utf-8"))
        self.findings: list[dict[str, Any]] = []
        self.launches: list[dict[str, Any]] = []
        if document["library"]:
            self._load(document)

    def _load(self, document: dict[str, Any]) -> None:
        torch = self.torch
        torch.ops.load_library(document["library"])
        self.ops = getattr(torch.ops, document["namespace"])
        controls = ctypes.CDLL(document["library"])
        controls.stub_device(*(document["device"][name] for name in ("major", "minor", "sms", "l2", "smem")))
        controls.stub_hook(ctypes.c_void_p(self.machine.attach()))
        self._take = controls.stub_take

    def call(self, name: str, **arguments: Any) -> Any:
        """Call an op. What the host code or the executor refuses is a RuntimeError with its words."""
        self.machine.settings = self.settings
        try:
            return getattr(self.ops, name).default._op_dk(self.torch._C.DispatchKey.CUDA, **arguments)
        except RuntimeError as error:
            stopped = [launch["error"] for launch in self._gather() if launch["error"]]
            if stopped:
                raise RuntimeError(f"{stopped[0]} ({error})") from error
            raise
        finally:
            self._gather()

    def launch(self, kernel: str, *arguments: int, grid: int = 1, block: int = 32, shared: int = 0) -> None:
        """Launch a kernel of the PTX itself; tensors are given by their address."""
        self.machine.settings = self.settings
        try:
            self.machine.launch(kernel, (grid, 1, 1), (block, 1, 1), shared, list(arguments))
        finally:
            self.findings += self.machine.take_findings()

    def _gather(self) -> list[dict[str, Any]]:
        """Take over what the machine has collected; returns the new launches."""
        self._take()
        self.findings += self.machine.take_findings()
        new = list(self.machine.take_launches())
        self.launches += new
        return new

    @property
    def errors(self) -> list[dict[str, Any]]:
        """Findings that are not mere notes."""
        return [found for found in self.findings if not found["note"]]


def main() -> int:
    document = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints, prints to stderr
    gpu = Gpu(document)
    module, _, name = document["function"].partition(":")
    result = getattr(importlib.import_module(module), name)(gpu, **document["arguments"])
    json.dump({"result": result, "findings": gpu.findings, "launches": gpu.launches}, answers)
    answers.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
