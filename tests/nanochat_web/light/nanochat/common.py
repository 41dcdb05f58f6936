import os
from pathlib import Path

import torch


def get_base_dir() -> str:
    return os.environ.get("NANOCHAT_BASE_DIR") or str(Path.home() / ".cache" / "nanochat")


def autodetect_device_type() -> str:
    print("Autodetected device type: cpu")
    return "cpu"


def compute_init(device_type: str = "cuda"):
    return False, 0, 0, 1, torch.device(device_type)
