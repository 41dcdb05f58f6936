"""Makes a CPU-only torch say that it sees a GB10 (CUDA 13.0, capability 12.1). Facts only: tensors stay on the CPU."""

from __future__ import annotations

from types import SimpleNamespace

import torch

PROPERTIES = SimpleNamespace(
    name="NVIDIA GB10", major=12, minor=1, total_memory=128 << 30, multi_processor_count=48, gcnArchName=""
)


def fake() -> None:
    torch.version.cuda = "13.0"
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_capability = lambda device=None: (12, 1)
    torch.cuda.get_device_name = lambda device=None: PROPERTIES.name
    torch.cuda.get_device_properties = lambda device=None: PROPERTIES
