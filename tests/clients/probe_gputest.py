"""gpu-test's stage with transformers, on the CPU: CUDA is faked where transformers asks for it, as in the probe beside.

`--spoil` forgets the window, which the stage has to find. The last line of output is a JSON object.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def main() -> None:
    from ci.prove.gpu.probes import clients
    from tests.clients.probe_transformers import fake_cuda

    fake_cuda()
    if "--spoil" in sys.argv:
        import flash_attn_interface

        for name in ("flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"):
            setattr(flash_attn_interface, name, windowless(getattr(flash_attn_interface, name)))
    device, found = torch.device("cpu"), {}
    for case in clients.cases():
        found[case.name] = [finding.good for finding in case.findings(device, torch.bfloat16)]
    print(json.dumps(found))


def windowless(function: Any) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("window_size", None)
        return function(*args, **kwargs)

    return call


if __name__ == "__main__":
    main()
