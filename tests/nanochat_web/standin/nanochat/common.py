"""A stand-in for nanochat, written for these tests: the same module names and calls, a model that obeys its prompt."""

import os
from pathlib import Path

import torch


def get_base_dir() -> str:
    return os.environ.get("NANOCHAT_BASE_DIR") or str(Path.home() / ".cache" / "nanochat")


def autodetect_device_type() -> str:
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"Autodetected device type: {kind}")  # on stdout, as nanochat does
    return kind


def compute_init(device_type: str = "cuda"):
    torch.manual_seed(42)
    return False, 0, 0, 1, torch.device(device_type)
